"""All metrics of one model on one task."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from muwa.cache.store import Store
from muwa.eval.answers.benchmarks import benchmarks, questions
from muwa.eval.clip.accuracy import forget, retain, utility
from muwa.eval.clip.retrain_gap import check as check_twins
from muwa.eval.clip.retrain_gap import retrain_gap
from muwa.eval.clip.similarity import matched
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.diffusion.model import Diffusion
from muwa.models.vlm.model import Vlm
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.types.data import Task
from muwa.types.metric import Metric

Measure = Callable[[Any, Task], dict[str, Metric]]  # of (Features | ImageGenerator | QuestionAnswering, task)


def evaluate(
    model: Clip | Diffusion | Vlm, task: Task, *, store: Store,
    metrics: Iterable[Measure] = (forget, retain, utility, matched), progress: bool = False,
) -> dict[str, Metric]:  # fmt: skip
    """Metric name -> value with its sample count, on the pictures of `task.eval`.

    What was embedded, drawn or answered before is read back from `store`.

    Args:
        metrics: Functions of (subject, task): the subject is a CLIP's `Features`, a pipeline's `ImageGenerator`, a vision-language
            model's `QuestionAnswering`. The default ones are of a CLIP.

    Raises:
        ValueError: A metric is of another family of models (`check_metrics`).
    """
    subject = _subject(model)(model, store, progress=progress)
    found: dict[str, Metric] = {}
    for metric in metrics:
        started = time.perf_counter()
        found |= metric(subject, task)
        name = f"eval/{getattr(metric, 'func', metric).__name__}"
        store.seconds[name] = store.seconds.get(name, 0.0) + time.perf_counter() - started
    return found


def fitting(model: Clip | Diffusion | Vlm, metrics: Mapping[str, Measure]) -> dict[str, Measure]:
    """Of metrics of all families, as `eval=full` lists them, those of the model's own; else all, for `check_metrics`."""
    kinds = {name: _kind(metric) for name, metric in metrics.items()}
    if not set(_SAYS) <= set(kinds.values()):
        return dict(metrics)
    others = set(_SAYS) - {_subject(model).__name__}
    return {name: metric for name, metric in metrics.items() if kinds[name] not in others}


def check_metrics(model: Clip | Diffusion | Vlm, metrics: Mapping[str, Measure]) -> None:
    """Refuse metrics of another family of models, before any compute; a metric says its own by its first parameter. And
    a comparison with twins that are not there, and benchmarks whose files are not there or cannot be read.

    Args:
        metrics: By their names in the config; those that do not say of what they are, are let through.

    Raises:
        ValueError, FileNotFoundError: Names the metric and what it measures, or what its twins or files lack.
    """
    for name, metric in metrics.items():
        kind = _kind(metric)
        if kind in _SAYS and kind != _subject(model).__name__:
            raise ValueError(f"eval.{name}: measures {_SAYS[kind]}, not {model.source}; leave {name} out of eval=[...]")
        if isinstance(metric, partial) and metric.func is retrain_gap and isinstance(model, Clip):
            check_twins(model, metric.keywords.get("twins", ()))
        if isinstance(metric, partial) and metric.func is benchmarks:
            questions(**metric.keywords)


_SAYS = {"Features": "a CLIP", "ImageGenerator": "a text-to-image model", "QuestionAnswering": "a vision-language model"}


def _kind(metric: Measure) -> str:
    return str(next(iter(inspect.signature(metric).parameters.values())).annotation)


def _subject(model: Clip | Diffusion | Vlm) -> Callable[..., Any]:
    return ImageGenerator if isinstance(model, Diffusion) else QuestionAnswering if isinstance(model, Vlm) else Features

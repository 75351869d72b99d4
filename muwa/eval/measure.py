"""All metrics of one model on one split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from muwa.cache import Store
from muwa.encode import Features
from muwa.eval.accuracy import forget, retain, utility
from muwa.eval.similarity import matched
from muwa.interview import Interview
from muwa.models.clip import Clip
from muwa.models.diffusion import Diffusion
from muwa.models.vlm import Vlm
from muwa.studio import Studio
from muwa.types import Metric, Split, Task

Measure = Callable[[Features, Split], dict[str, Metric]]
MeasureDrawn = Callable[[Studio, Task], dict[str, Metric]]
MeasureSaid = Callable[[Interview, Task], dict[str, Metric]]


def evaluate(
    model: Clip, split: Split, *, store: Store, metrics: Iterable[Measure] = (forget, retain, utility, matched),
    progress: bool = False,
) -> dict[str, Metric]:  # fmt: skip
    """Metric name -> value with its sample count. Features that were computed before are read back from `store`.

    Args:
        metrics: Functions of (features, split); all of `muwa.eval` by default.
    """
    features = Features(model, store, progress=progress)
    found: dict[str, Metric] = {}
    for metric in metrics:
        found |= metric(features, split)
    return found


def evaluate_drawings(
    model: Diffusion, task: Task, *, store: Store, metrics: Iterable[MeasureDrawn], progress: bool = False
) -> dict[str, Metric]:
    """The same for what a pipeline draws. Pictures that were drawn before are read back from `store`.

    Args:
        metrics: Functions of (studio, task), such as `muwa.eval.canvas.answers`.
    """
    studio = Studio(model, store, progress=progress)
    found: dict[str, Metric] = {}
    for metric in metrics:
        found |= metric(studio, task)
    return found


def evaluate_answers(
    model: Vlm, task: Task, *, store: Store, metrics: Iterable[MeasureSaid], progress: bool = False
) -> dict[str, Metric]:
    """The same for what a vision-language model says. Answers that were given before are read back from `store`.

    Args:
        metrics: Functions of (interview, task), such as `muwa.eval.answers.answers`.
    """
    interview = Interview(model, store, progress=progress)
    found: dict[str, Metric] = {}
    for metric in metrics:
        found |= metric(interview, task)
    return found

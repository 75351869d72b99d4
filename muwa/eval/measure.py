"""All metrics of one model on one task."""

from __future__ import annotations

import time
from collections.abc import Mapping

from muwa.eval.base import Measure
from muwa.models.base import Editable, Observer, check_observer
from muwa.types.data import PROMPTS, Task
from muwa.types.metric import Metric


def evaluate(observer: Observer, task: Task, measures: Mapping[str, Measure]) -> dict[str, Metric]:
    """Apply all measures to one model: metric name -> metric, on the eval split of `task`.

    Outputs of the model that the cache of `observer.run` holds are read back. The time of each measure is
    added to `seconds` of that cache.

    Args:
        observer: `model.observe(run)` of the model to measure.
        measures: Name in the config -> measure.
    """
    metrics: dict[str, Metric] = {}
    store = observer.run.store
    for name, measure in measures.items():
        started = time.perf_counter()
        metrics |= measure(observer, task)
        if store is not None:
            stage = f"eval/{name}"
            store.seconds[stage] = store.seconds.get(stage, 0.0) + time.perf_counter() - started
    return metrics


def fitting(model: Editable, measures: Mapping[str, Measure]) -> dict[str, Measure]:
    """Those measures of a list for all families (`eval=full`) that fit this model.

    A list with measures of only one or two families is returned as it is. If some do not fit the model,
    `check_measures` then refuses them.
    """
    if len({measure.observes for measure in measures.values()}) < 3:
        return dict(measures)
    return {name: measure for name, measure in measures.items() if measure.observes is model.observer}


def check_measures(model: Editable, task: Task, measures: Mapping[str, Measure]) -> None:
    """Raise if a measure does not fit the model or refuses one of its settings; before any compute.

    Raises:
        ValueError, FileNotFoundError: Names the measure, what it got and what it wants.
    """
    for name, measure in measures.items():
        check_observer(f"eval.{name}", measure.observes, model)
        if task.kind == PROMPTS and not measure.reads_prompts:
            raise ValueError(
                f"eval.{name}: task=prompts has no images and no prompt for a name; take eval=[prompts], or "
                f"leave it out: ~eval.{name}"
            )
        measure.check(model, task)

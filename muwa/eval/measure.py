"""All metrics of one model on one task."""

from __future__ import annotations

import time
from collections.abc import Mapping

from muwa.eval.base import Measure
from muwa.models.base import Editable, Observer, check_observer
from muwa.types.data import Task
from muwa.types.metric import Metric


def evaluate(observer: Observer, task: Task, measures: Mapping[str, Measure]) -> dict[str, Metric]:
    """Metric name -> metric, on the eval split of `task`.

    What the model gave before is read back from the cache of `observer.run`, whose `seconds` note each measure's time.

    Args:
        observer: `model.observe(run)` of the model to measure.
        measures: By their names in the config.
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
    """The measures that look at what this model gives, of a list for all families as `eval=full` is.

    A list that names measures of one or two families only is returned as it is: `check_measures` then refuses the others.
    """
    if len({measure.observes for measure in measures.values()}) < 3:
        return dict(measures)
    return {name: measure for name, measure in measures.items() if measure.observes is model.observer}


def check_measures(model: Editable, task: Task, measures: Mapping[str, Measure]) -> None:
    """Raise if a measure does not fit the model, or refuses one of its settings; before any compute.

    Raises:
        ValueError, FileNotFoundError: Names the measure, what it got and what it wants.
    """
    for name, measure in measures.items():
        check_observer(f"eval.{name}", measure.observes, model)
        measure.check(model, task)

"""All metrics of one model on one split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from muwa.cache import Store
from muwa.encode import Features
from muwa.eval.accuracy import forget, retain, utility
from muwa.eval.similarity import matched
from muwa.models.clip import Clip
from muwa.types import Metric, Split

Measure = Callable[[Features, Split], dict[str, Metric]]


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

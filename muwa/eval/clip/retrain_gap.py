"""How far the model is from models retrained without the target, and how far those are from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.ranks import own_cosine
from muwa.eval.clip.retrained_models import check_retrained, load_retrained
from muwa.eval.statistics import counts, rate_interval, resamples
from muwa.models.base import Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import RATE, Metric, Reading
from muwa.types.ranges import Text

PARTS = {"forget": "images of the target", "retain": "images of other names", "utility": "unrelated images"}
Difference = tuple[float, np.ndarray]  # (value, (RESAMPLES,) the value of each resample)
_SECTION = "Against models retrained without the target"
_UNITS = {"predictions": RATE, "similarity": "distance"}
_TEXTS = {
    "predictions": "fraction of held-out {} whose first guess differs",
    "similarity": "distance (1-Wasserstein) of the cosines of held-out {} with their own name",
}


@dataclass(frozen=True)
class RetrainGap(Measure):
    """`gap/<part>_predictions`, `gap/<part>_similarity` and the floor of each, on the three eval sets.

    - predictions: fraction of images whose first guess differs from a retrained model's, in [0, 1].
    - similarity: 1-Wasserstein distance of the cosines of images with their own name, in [0, 2].
    - <gap>_floor: the same between two retrained models; no method can be asked to go below it.

    Gaps are means over the retrained models, floors means over pairs of them. Lower is better.

    Intervals come from resampling the images, with the same resamples for all models. Retrained models are
    not resampled, so no interval covers the chance in how few models happened to train. Where all resamples
    agree, the interval of predictions is Wilson's of the images. The interval of similarity is the value ±
    1.96 standard deviations of its resamples, because a small distance is too large on average in resamples,
    and their quantiles could miss the value itself. With a single image it is all of [0, 2].

    Args:
        retrained: Folders of at least two models trained without the target, from different seeds
            (`python -m muwa.miniature.retrained`). They must be trained for as long as the model itself:
            otherwise part of the gap is the shorter training.

    Raises:
        ValueError: Fewer than two models are given, or one has another architecture or was trained without
            another name (`check`). muwa can retrain the miniature only.
    """

    observes: ClassVar[type[Observer]] = Features

    retrained: Sequence[Text]

    def check(self, model: Any, task: Task) -> None:
        """Raise if fewer than two retrained models are there, or one does not fit the model or the task."""
        check_retrained(model, self.retrained, task.names, "eval.retrain_gap.retrained", least=2)

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        models = load_retrained(features.model, self.retrained)
        observers = [features, *(Features(model, features.run) for model in models)]
        metrics: dict[str, Metric] = {}
        for part, which in PARTS.items():
            images: LabelledImages = getattr(task.eval, part)
            if len(images):
                guesses, cosines = zip(*(_outputs(one, images) for one in observers), strict=True)
                metrics |= _gaps(f"gap/{part}_predictions", "predictions", which, differing, guesses)
                metrics |= _gaps(f"gap/{part}_similarity", "similarity", which, transport, cosines)
        return metrics


def differing(one: np.ndarray, other: np.ndarray) -> Difference:
    """The fraction of places at which two lists of answers differ, and its value in each resample.

    >>> differing(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3]))[0]
    0.5
    """
    unlike = (one != other).astype(float)
    return float(unlike.mean()), counts(len(unlike)) @ unlike / len(unlike)


def transport(one: np.ndarray, other: np.ndarray) -> Difference:
    """The 1-Wasserstein distance of two equally large samples, and its value in each resample.

    It is the mean gap between their order statistics.

    >>> transport(np.array([0.0, 1.0]), np.array([3.0, 0.0]))[0]
    1.0
    """
    rows = resamples(len(one))
    draws = np.abs(np.sort(one[rows]) - np.sort(other[rows])).mean(1)
    return float(np.abs(np.sort(one) - np.sort(other)).mean()), draws


def _outputs(features: Features, images: LabelledImages) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: ((n,) the first guess, (n,) the cosine with its own name)."""
    embeddings, weights = features.images(images), features.classes(images.classes)
    cosines = own_cosine(embeddings, weights, torch.tensor(images.labels, dtype=torch.long))
    guesses: Tensor = (embeddings @ weights.T).argmax(1)
    return guesses.numpy(), cosines.double().numpy()


def _gaps(
    name: str,
    kind: str,
    which: str,
    difference: Callable[[np.ndarray, np.ndarray], Difference],
    outputs: Sequence[np.ndarray],
) -> dict[str, Metric]:
    """The gap called `name`, and its floor.

    Args:
        kind: "predictions" | "similarity".
        which: The images, for the reading.
        outputs: What each model gives for each image; the first is the measured model, the others are
            retrained.
    """
    mine, *others = outputs
    what, unit = _TEXTS[kind].format(which), _UNITS[kind]
    between = f"{what}, between this model and {len(others)} retrained without the target"
    gap = Reading(between, better="lower", unit=unit, section=_SECTION)
    apart = f"{what}, between two models retrained without the target: the floor"
    floor = Reading(apart, better="neither", unit=unit, section=_SECTION)
    pairs = combinations(others, 2)
    return {
        name: mean_difference([difference(mine, other) for other in others], len(mine), gap),
        f"{name}_floor": mean_difference([difference(one, other) for one, other in pairs], len(mine), floor),
    }


def mean_difference(differences: Sequence[Difference], n: int, reading: Reading) -> Metric:
    """The mean of differences on the same `n` images, with the interval that `RetrainGap` describes."""
    values, draws = zip(*differences, strict=True)
    value, mean = float(np.mean(values)), np.mean(draws, 0)
    if reading.unit == RATE:
        return Metric(value, n, *rate_interval(mean, value, n), reading)
    half = 1.959964 * float(np.std(mean, ddof=1)) if n > 1 else 2.0
    return Metric(value, n, max(0.0, value - half), min(2.0, value + half), reading)

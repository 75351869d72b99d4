"""How far the model is from the exact answer: models retrained without the forgotten, and how far those are apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from muwa.eval.clip.ranks import own_cosine
from muwa.eval.clip.retrained_models import load_twins
from muwa.eval.statistics import counts, drawn, rate_interval
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric

PARTS = {"forget": "of the forgotten", "retain": "of the other names", "utility": "that are unrelated"}


def retrain_gap(features: Features, task: Task, *, twins: Sequence[str] = ()) -> dict[str, Metric]:
    """`gap/<part>_predictions`, `gap/<part>_similarity` and the floor of each, of forget, retain and utility pictures.

        predictions    share of pictures whose first guess is not the twin's, in [0, 1]
        similarity     1-Wasserstein distance of the cosines of pictures with their own name, in [0, 2]
        <gap>_floor    the same between two twins, which no method can be asked to go below

    Gaps are means over the twins, floors over pairs of twins. Lower is better. Both intervals are of resampled pictures (the
    same for all models); twins are not resampled, so that the luck of few trainings is in none of them. Where all resamples
    agree, the interval of predictions is Wilson's of the pictures; that of one picture's similarity is all of [0, 2]. That
    of similarity is the value ± 1.96 standard deviations of its resamples: a distance of resamples is too large on average
    where it is small, and their middle could miss the value itself.

    Args:
        twins: Folders of at least two models trained without the forgotten, alike but for the seed, as long as the model
            itself: `python -m muwa.miniature.twins`. Twins of a shorter training are alike for another reason.

    Raises:
        ValueError: Fewer than two, or one is another kind of model or without somebody else (`load_twins`); only the
            miniature can be retrained here.
    """
    models = check(features.model, twins, task.names)
    found: dict[str, Metric] = {}
    for part, who in PARTS.items():
        pictures: LabelledImages = getattr(task.eval, part)
        if not len(pictures):
            continue
        subjects = [features, *(Features(m, features.store, progress=features.progress) for m in models)]
        both = [_answers(one, pictures) for one in subjects]
        for name, gap, side in (("predictions", differing, 0), ("similarity", transport, 1)):
            mine, *others = [one[side].numpy() for one in both]
            what = _READS[name].format(who)
            reads = f"{what}, between this model and {len(models)} retrained without the forgotten"
            found[f"gap/{part}_{name}"] = _mean(
                name, [gap(mine, other) for other in others], len(pictures), "lower", reads
            )
            floor = [gap(one, other) for one, other in combinations(others, 2)]
            reads = f"{what}, between two models retrained without the forgotten: the floor"
            found[f"gap/{part}_{name}_floor"] = _mean(name, floor, len(pictures), "neither", reads)
    return found


_READS = {
    "predictions": "share of held-out pictures {} whose first guess differs",
    "similarity": "distance (1-Wasserstein) of the cosines of held-out pictures {} with their own name",
}


def check(model: Clip, twins: Sequence[str], names: Sequence[str] | None = None) -> list[Clip]:
    """The twins, loaded.

    Args:
        names: What is forgotten; None where that is not known yet.

    Raises:
        ValueError: They cannot serve; says why and what to type.
    """
    return load_twins(model, twins, "eval.retrain_gap.twins", names=names, least=2)


def differing(one: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of places at which two lists of answers differ, and that of each resample of the places.

    >>> differing(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 3]))[0]
    0.5
    """
    unlike = (one != other).astype(float)
    return float(unlike.mean()), counts(len(unlike)) @ unlike / len(unlike)


def transport(one: np.ndarray, other: np.ndarray) -> tuple[float, np.ndarray]:
    """The 1-Wasserstein distance of two equally large samples, the mean gap of their order statistics; and of resamples.

    >>> transport(np.array([0.0, 1.0]), np.array([3.0, 0.0]))[0]
    1.0
    """
    rows = drawn(len(one))
    draws = np.abs(np.sort(one[rows]) - np.sort(other[rows])).mean(1)
    return float(np.abs(np.sort(one) - np.sort(other)).mean()), draws


def _answers(features: Features, pictures: LabelledImages) -> tuple[Tensor, Tensor]:
    """((n,) the first guess, (n,) the cosine with the own name) of each picture."""
    images, weights = features.images(pictures), features.classes(pictures.classes)
    cosines = own_cosine(images, weights, torch.tensor(pictures.labels, dtype=torch.long))
    return (images @ weights.T).argmax(1), cosines.double()


def _mean(name: str, gaps: list[tuple[float, np.ndarray]], n: int, better: str, reads: str) -> Metric:
    values, draws = zip(*gaps, strict=True)
    value, mean = float(np.mean(values)), np.mean(draws, 0)
    if name == "predictions":
        return Metric(value, n, *rate_interval(mean, value, n), better, reads)
    wide = 1.959964 * float(np.std(mean, ddof=1)) if n > 1 else 2.0
    return Metric(value, n, max(0.0, value - wide), min(2.0, value + wide), better, reads)

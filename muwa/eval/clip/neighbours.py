"""Does forgetting harm look-alikes? Retained names by how like the forgotten they are."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from muwa.eval.clip.accuracy import over_names
from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import drawn, interval
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric

BINS = ("nearest", "near", "middle", "far", "farthest")
BY = ("pictures", "names")


def neighbours(features: Features, task: Task, *, by: str = "pictures") -> dict[str, Metric]:
    """`neighbours/nearest` .. `neighbours/farthest`: retain top-1 in five groups of names, from the look-alikes on.

    And `neighbours/correlation`: Spearman's, over the retained names, of likeness with harm, in [-1, 1]. Harm is the rise of
    a name's mean cross-entropy (among all names, at the model's temperature, in nats) over the unedited model's. Positive:
    look-alikes suffered more. 0 without an interval where nothing rose or fell, as for the unedited model.

    Args:
        by: Likeness by the *unedited* model: cosine of mean "pictures" of both, or of their "names" as text. Of several
            forgotten names the nearest counts.

    Raises:
        ValueError: Another `by`; before any compute.

    Groups are of equal numbers of names, as far as that goes; a group that is empty, with fewer than five names, has n 0.
    Their intervals are of resampled names (`over_names`).
    """
    if by not in BY:
        raise ValueError(f"eval.neighbours.by: got {by!r}, want one of {', '.join(BY)}")
    others, classes = task.eval.retain, task.eval.retain.classes
    labels = torch.tensor(others.labels, dtype=torch.long)
    names = labels.unique()
    original = Features(features.model.unedited, features.store, progress=features.progress)
    likeness = _likeness(original, task, names, by)
    hits = top_k(features.images(others), features.classes(classes), labels, 1)
    found: dict[str, Metric] = {}
    for label, group in zip(BINS, np.array_split(np.argsort(-likeness.numpy(), kind="stable"), len(BINS)), strict=True):
        mine = torch.isin(labels, names[group])
        reads = (
            f"share of held-out pictures recognised among the fifth of the other names that is {label} to the forgotten"
        )
        found[f"neighbours/{label}"] = Metric(*over_names(hits[mine], labels[mine]), "higher", reads)
    rise = surprise(features, others) - surprise(original, others)
    harm = torch.stack([rise[labels == name].mean() for name in names]) if len(names) else torch.zeros(0)
    return found | {"neighbours/correlation": correlation(likeness, harm)}


def correlation(likeness: Tensor, harm: Tensor) -> Metric:
    """Spearman's rank correlation with its interval, over resampled names; 0 without one where either is constant."""
    reads = "rank correlation, over other names, of likeness to the forgotten with how much worse they are recognised"
    pair = np.stack([likeness.double().numpy(), harm.double().numpy()])
    if pair.shape[1] < 3 or not pair.std(1).all():
        return Metric(0.0, pair.shape[1], None, None, "neither", reads)
    draws = ranked(*pair[:, drawn(pair.shape[1])])
    low, high = interval(draws[np.isfinite(draws)])
    return Metric(float(ranked(pair[:1], pair[1:])[0]), pair.shape[1], low, high, "neither", reads)


def ranked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(b,) Spearman's correlation of each row of (b, n) with its like; NaN where one is constant."""
    a, b = (rankdata(side, axis=1) for side in (x, y))
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def surprise(features: Features, pictures: LabelledImages) -> Tensor:
    """(n,) cross-entropy of each picture's own name among all names, at the model's temperature, in nats."""
    logits = features.model.scale.cpu().double() * (features.images(pictures) @ features.classes(pictures.classes).T)
    return F.cross_entropy(logits, torch.tensor(pictures.labels, dtype=torch.long), reduction="none")


def _likeness(original: Features, task: Task, names: Tensor, by: str) -> Tensor:
    """(names,) the cosine of each retained name with the forgotten one nearest to it."""
    weights = original.classes(task.eval.retain.classes)
    forgotten = torch.tensor(task.eval.forget.labels, dtype=torch.long).unique()
    if by == "names":
        sides = weights[names], weights[forgotten]
    else:
        sides = _centres(original, task.eval.retain, names), _centres(original, task.eval.forget, forgotten)
    return (sides[0] @ sides[1].T).amax(1) if len(names) and len(forgotten) else torch.zeros(len(names))


def _centres(features: Features, pictures: LabelledImages, names: Tensor) -> Tensor:
    """(names, d) each name's mean picture, of length 1."""
    images, labels = features.images(pictures), torch.tensor(pictures.labels, dtype=torch.long)
    return F.normalize(torch.stack([images[labels == name].mean(0) for name in names]), dim=-1)

"""Does forgetting harm look-alikes? Accuracy on the other names, grouped by similarity to the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from muwa.eval.base import Measure
from muwa.eval.clip.accuracy import outcomes, over_names
from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import interval, resamples
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric, Reading

GROUPS = ("nearest", "near", "middle", "far", "farthest")
BY = ("pictures", "names")
_SECTION = "Look-alikes"
LOOK_ALIKES = {
    "pictures": "Look-alikes (the 20 % of names with the most similar images)",
    "names": "Look-alikes (the 20 % of names with the most similar text)",
}


@dataclass(frozen=True)
class Neighbours(Measure):
    """`neighbours/nearest` .. `neighbours/farthest`: retain top-1 in five groups of names, look-alikes first.

    `neighbours/correlation` is Spearman's correlation over the retained names, in [-1, 1], of similarity with
    harm. The harm to a name is the rise of its mean cross-entropy above that of the unedited model (among all
    names, at the model's temperature, in nats). A positive correlation means that look-alikes suffered more.
    It is 0 without an interval if nothing rose or fell, as for the unedited model.

    The numbers of names in the groups are as equal as possible. With fewer than five names a group may be
    empty; its n is 0. Intervals of groups come from resampled names (`over_names`).

    Args:
        by: What similarity is measured on, with the *unedited* model: "pictures" is the cosine of the mean
            image embeddings of two names, "names" that of their text embeddings. With several names to
            forget, a name's similarity is that with the nearest of them.

    Raises:
        ValueError: `by` is unknown (`check`).
    """

    observes: ClassVar[type[Observer]] = Features

    by: Literal["pictures", "names"]

    def check(self, model: Editable, task: Task) -> None:
        """Raise if `by` is unknown."""
        if self.by not in BY:
            raise ValueError(f"eval.neighbours.by: got {self.by!r}, want one of {', '.join(BY)}")

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        images = task.eval.retain
        labels = torch.tensor(images.labels, dtype=torch.long)
        names = labels.unique()
        unedited = Features(features.model.unedited, features.run)
        similarity = _similarity(unedited, task, names, self.by)
        hits = top_k(features.images(images), features.classes(images.classes), labels, 1)
        groups = np.array_split(np.argsort(-similarity.numpy(), kind="stable"), len(GROUPS))
        metrics: dict[str, Metric] = {}
        for group, members in zip(GROUPS, groups, strict=True):
            inside = torch.isin(labels, names[members])
            text = (
                f'fraction of held-out images recognised, for names in the group "{group}" of '
                f"{len(GROUPS)} groups by similarity to the target"
            )
            nearest = group == GROUPS[0]
            label = LOOK_ALIKES[self.by] if nearest else ""
            reading = Reading(text, section=_SECTION, role="kept" if nearest else "", label=label)
            mine, their = hits[inside], labels[inside]
            each = outcomes(mine, their, images.classes)
            metrics[f"neighbours/{group}"] = Metric(*over_names(mine, their), reading, outcomes=each)
        rise = surprise(features, images) - surprise(unedited, images)
        harm = torch.stack([rise[labels == name].mean() for name in names]) if len(names) else torch.zeros(0)
        return metrics | {"neighbours/correlation": correlation(similarity, harm)}


def correlation(similarity: Tensor, harm: Tensor) -> Metric:
    """Spearman's rank correlation, with an interval over resampled names.

    It is 0 without an interval if one side is constant or there are fewer than three names.

    Args:
        similarity: (names,) cosine of each retained name with the target.
        harm: (names,) rise of each name's cross-entropy, in nats.
    """
    reading = Reading(
        "rank correlation, over the other names, of similarity to the target with how much worse they are "
        "recognised",
        better="neither",
        unit="correlation",
        section=_SECTION,
    )
    pair = np.stack([similarity.double().numpy(), harm.double().numpy()])
    if pair.shape[1] < 3 or not pair.std(1).all():
        return Metric(0.0, pair.shape[1], reading=reading)
    draws = ranked(*pair[:, resamples(pair.shape[1])])
    low, high = interval(draws[np.isfinite(draws)])
    return Metric(float(ranked(pair[:1], pair[1:])[0]), pair.shape[1], low, high, reading)


def ranked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(b,) Spearman's correlation of each row of x (b, n) with that of y; NaN where one is constant."""
    a, b = (rankdata(side, axis=1) for side in (x, y))
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def surprise(features: Features, images: LabelledImages) -> Tensor:
    """(n,) cross-entropy of each image's own name among all names, at the model's temperature, in nats."""
    logits = features.model.scale.cpu().double() * (
        features.images(images) @ features.classes(images.classes).T
    )
    return F.cross_entropy(logits, torch.tensor(images.labels, dtype=torch.long), reduction="none")


def _similarity(unedited: Features, task: Task, names: Tensor, by: str) -> Tensor:
    """(names,) the cosine of each retained name with the nearest name to forget."""
    weights = unedited.classes(task.eval.retain.classes)
    forgotten = torch.tensor(task.eval.forget.labels, dtype=torch.long).unique()
    if by == "names":
        sides = weights[names], weights[forgotten]
    else:
        sides = _centres(unedited, task.eval.retain, names), _centres(unedited, task.eval.forget, forgotten)
    return (sides[0] @ sides[1].T).amax(1) if len(names) and len(forgotten) else torch.zeros(len(names))


def _centres(features: Features, images: LabelledImages, names: Tensor) -> Tensor:
    """(names, d) the mean embedding of each name's images, of length 1."""
    embeddings, labels = features.images(images), torch.tensor(images.labels, dtype=torch.long)
    return F.normalize(torch.stack([embeddings[labels == name].mean(0) for name in names]), dim=-1)

"""How close images are to their names: the mean over matched pairs, and the matrix of names against names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from muwa.eval.base import Measure
from muwa.eval.clip.ranks import own_cosine
from muwa.models.base import Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Split, Task
from muwa.types.metric import Metric, Reading


@dataclass(frozen=True)
class MatchedSimilarity(Measure):
    """`forget/cosine`, `retain/cosine`: mean cosine in [-1, 1] of held-out images with their own name.

    Lower is better for the target, higher for the other names.
    """

    observes: ClassVar[type[Observer]] = Features

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        text = "mean cosine similarity between held-out images of {} and their own name"
        forgotten = Reading(text.format("the target"), better="lower", unit="cosine")
        others = Reading(text.format("the other names"), unit="cosine")
        return {
            "forget/cosine": _mean_cosine(features, task.eval.forget, forgotten),
            "retain/cosine": _mean_cosine(features, task.eval.retain, others),
        }


def _mean_cosine(features: Features, images: LabelledImages, reading: Reading) -> Metric:
    """The mean cosine of `images` with their own names, with the normal 95 % interval of a mean."""
    labels = torch.tensor(images.labels, dtype=torch.long)
    values = own_cosine(features.images(images), features.classes(images.classes), labels).double()
    n = len(values)
    if not n:
        return Metric(0.0, 0, reading=reading)
    mean = values.mean().item()
    if n == 1:  # one image says nothing about the spread: any cosine
        return Metric(mean, 1, -1.0, 1.0, reading)
    half = 1.96 * values.std().item() / math.sqrt(n)
    return Metric(mean, n, mean - half, mean + half, reading)


def matrix(features: Features, split: Split, count: int) -> dict[str, object]:
    """Mean cosine of the images of each name (row) with each name (column).

    Args:
        count: How many retained names follow the names to forget; they are spread evenly over all retained
            names.

    Returns:
        {"names": the names, "n": the number of images of each, "values": a square list of lists}.
    """
    classes = split.forget.classes
    retained = sorted(set(split.retain.labels))
    count = min(count, len(retained))
    chosen = [retained[i * len(retained) // count] for i in range(count)]
    labels = list(dict.fromkeys([*split.forget.labels, *dict.fromkeys(chosen)]))
    weights = features.classes(classes)
    values, numbers = [], []
    for label in labels:
        images = split.forget if label in split.forget.labels else split.retain
        images = images.select([i for i, other in enumerate(images.labels) if other == label])
        numbers.append(len(images))
        values.append((features.images(images).mean(0) @ weights[labels].T).tolist())
    return {"names": [classes.names[label] for label in labels], "n": numbers, "values": values}

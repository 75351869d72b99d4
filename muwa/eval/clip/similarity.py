"""How close pictures are to their names: the mean over matched pairs, and the matrix of names against names."""

from __future__ import annotations

import math

import torch

from muwa.eval.clip.ranks import own_cosine
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Split, Task
from muwa.types.metric import Metric


def matched(features: Features, task: Task) -> dict[str, Metric]:
    """`forget/cosine`, `retain/cosine`: mean cosine in [-1, 1] of held-out pictures with their own name."""
    reads = "mean cosine similarity between held-out pictures of {} and their own name"
    return {
        "forget/cosine": _mean_cosine(features, task.eval.forget, "lower", reads.format("the forgotten")),
        "retain/cosine": _mean_cosine(features, task.eval.retain, "higher", reads.format("the other names")),
    }


def _mean_cosine(features: Features, pictures: LabelledImages, better: str, reads: str) -> Metric:
    labels = torch.tensor(pictures.labels, dtype=torch.long)
    values = own_cosine(features.images(pictures), features.classes(pictures.classes), labels).double()
    n = len(values)
    if not n:
        return Metric(0.0, 0, None, None, better, reads)
    mean = values.mean().item()
    if n == 1:  # one picture says nothing of the spread: any cosine
        return Metric(mean, 1, -1.0, 1.0, better, reads)
    half = 1.96 * values.std().item() / math.sqrt(n)
    return Metric(mean, n, mean - half, mean + half, better, reads)


def matrix(features: Features, split: Split, names: int) -> dict[str, object]:
    """Mean cosine of the pictures of each name (row) with each name (column): the forgotten first, then `names` others.

    Returns:
        {"names": the names, "n": pictures of each, "values": a square list of lists}.
        The others are spread evenly over the retained names.
    """
    classes = split.forget.classes
    others = sorted(set(split.retain.labels))
    count = min(names, len(others))
    spread = [others[i * len(others) // count] for i in range(count)]
    labels = list(dict.fromkeys([*split.forget.labels, *dict.fromkeys(spread)]))
    weights = features.classes(classes)
    rows, counts = [], []
    for label in labels:
        known = split.forget if label in split.forget.labels else split.retain
        mine = known.select([i for i, other in enumerate(known.labels) if other == label])
        counts.append(len(mine))
        rows.append((features.images(mine).mean(0) @ weights[labels].T).tolist())
    return {"names": [classes.names[label] for label in labels], "n": counts, "values": rows}

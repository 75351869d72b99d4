"""Retrieval over held-out pairs of pictures and names: from the picture to its name, from the name to its pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import share
from muwa.models.clip.embeddings import Features
from muwa.types.data import Task
from muwa.types.metric import Metric


def retrieval(features: Features, task: Task, *, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Metric]:
    """`retrieval/image_to_text_<k>`, `retrieval/text_to_image_<k>` of the other names; `forget_...` of the forgotten.

    The pool is all eval pictures of both, and all names. A name has several pictures, so a hit is

        image to text    the picture's own name is among the first k names
        text to image    *any* picture of the name is among the first k pictures; a tie counts against it

    Higher is better for the others, lower for the forgotten. n is the number of queries: pictures, or names.

    Args:
        ks: How many of the ranking count.

    Raises:
        ValueError: A k below 1.
    """
    if wrong := [k for k in ks if k < 1]:
        raise ValueError(f"eval.retrieval.ks: got {wrong[0]}, want numbers of at least 1")
    parts = {"": task.eval.retain, "forget_": task.eval.forget}
    weights = features.classes(task.eval.retain.classes)
    images = {role: features.images(pictures) for role, pictures in parts.items()}
    labels = {role: torch.tensor(pictures.labels, dtype=torch.long) for role, pictures in parts.items()}
    pool, whose = torch.cat(list(images.values())), torch.cat(list(labels.values()))
    found: dict[str, Metric] = {}
    for role, who, better in (("", "other", "higher"), ("forget_", "forgotten", "lower")):
        ranks = first_hit(weights[labels[role].unique()] @ pool.T, labels[role].unique()[:, None] == whose)
        for k in ks:
            hits = top_k(images[role], weights, labels[role], k).double()
            reads = f"share of held-out pictures of {who} names whose name is among the first {k}"
            found[f"retrieval/{role}image_to_text_{k}"] = share(hits, better, reads)
        for k in ks:
            reads = f"share of {who} names with a picture of theirs among the first {k} of {len(whose)} pictures"
            found[f"retrieval/{role}text_to_image_{k}"] = share((ranks <= k).double(), better, reads)
    return found


def first_hit(similarities: Tensor, right: Tensor) -> Tensor:
    """(q,) at which place of each query's ranking, from 1, its first right one stands.

    Args:
        similarities: (q, n) of each query with each candidate.
        right: (q, n) bool: which candidates are right, at least one a query.

    >>> first_hit(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[False, True, True]])).tolist()
    [2]
    """
    best = similarities.masked_fill(~right, float("-inf")).amax(1, keepdim=True) if right.numel() else similarities
    return 1 + (~(similarities < best) & ~right).sum(1)

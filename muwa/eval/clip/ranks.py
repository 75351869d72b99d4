"""Zero-shot recognition from embeddings: who is in the first k, and how close a picture is to its own name."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(features: Tensor, classes: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each picture's own class is among its `k` nearest: fewer than `k` classes are at least as near.

    A tie counts against the picture, so that a model whose embeddings collapsed does not pass for one that knows.

    Args:
        features: (n, d) picture embeddings of length 1.
        classes: (c, d) class embeddings of length 1.
        labels: (n,) index of each picture's class.
        k: >= 1; with fewer than k + 1 classes every answer would be right, so k is then cut to c - 1 (at least 1).

    Returns:
        (n,) bool.

    >>> e = torch.eye(3)
    >>> top_k(e, e, torch.tensor([0, 1, 0]), 1).tolist()
    [True, True, False]
    """
    if not len(features):
        return torch.zeros(0, dtype=torch.bool)
    return among_first(features @ classes.T, labels, k)


def among_first(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """The same from similarities (n, c) of each row with each column: is a row's own column among its first `k`?

    >>> among_first(torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]]), torch.tensor([1, 0]), 2).tolist()
    [True, True]
    >>> among_first(torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]]), torch.tensor([1, 0]), 1).tolist()
    [False, False]
    """
    own = logits.gather(1, labels[:, None])
    nearer = (~(logits < own)).sum(1) - 1  # the own column is no farther than itself; NaN is never farther
    return nearer < max(1, min(k, logits.shape[1] - 1))


def own_cosine(features: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(n,) cosine in [-1, 1] between each picture and the embedding of its own class."""
    return (features * classes[labels]).sum(-1)

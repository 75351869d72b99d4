"""Zero-shot recognition from embeddings: is an image's class among its k nearest, and how near is it?"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(features: Tensor, classes: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether each image's own class is among its `k` nearest: fewer than `k` others are at least as near.

    A tie counts against the image, so that a model whose embeddings collapsed does not seem to recognise
    anything.

    Args:
        features: (n, d) image embeddings of length 1.
        classes: (c, d) class embeddings of length 1.
        labels: (n,) index of each image's class.
        k: >= 1. With fewer than k + 1 classes every answer would be right, so k is then cut to c - 1 (at
            least 1).

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
    """`top_k` from similarities: (n,) bool, whether each row's own column is among its first `k`.

    Args:
        logits: (n, c) similarity of each row with each column.
        labels: (n,) each row's own column.
        k: The number of first columns; cut as in `top_k`.

    >>> among_first(torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]]), torch.tensor([1, 0]), 2).tolist()
    [True, True]
    >>> among_first(torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]]), torch.tensor([1, 0]), 1).tolist()
    [False, False]
    """
    right = logits.gather(1, labels[:, None])
    nearer = (~(logits < right)).sum(1) - 1  # minus the right column itself; NaN counts as nearer
    return nearer < max(1, min(k, logits.shape[1] - 1))


def own_cosine(features: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """(n,) cosine in [-1, 1] between each image and the embedding of its own class.

    Args:
        features: (n, d) image embeddings of length 1.
        classes: (c, d) class embeddings of length 1.
        labels: (n,) index of each image's class.
    """
    return (features * classes[labels]).sum(-1)


def own_margin(features: Tensor, classes: Tensor, labels: Tensor, k: int) -> Tensor:
    """(n,) cosine of each image to its own class, minus the k-th largest cosine to another class.

    An image is among `top_k` if and only if its margin is above 0.

    Args:
        features: (n, d) image embeddings of length 1.
        classes: (c, d) class embeddings of length 1; at least two.
        labels: (n,) index of each image's class.
        k: >= 1; cut to c - 1, as in `top_k`.

    >>> e = torch.eye(3)
    >>> own_margin(e, e, torch.tensor([0, 2, 2]), 1).tolist()
    [1.0, -1.0, 1.0]
    """
    cosines = features @ classes.T
    own = cosines.gather(1, labels[:, None])
    others = cosines.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.topk(max(1, min(k, len(classes) - 1)), dim=1).values[:, -1]

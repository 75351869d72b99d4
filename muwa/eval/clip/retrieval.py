"""Retrieval over held-out images and names: from an image to its name, and from a name to its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import share
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count

_SECTION = "Retrieval of images and names"


@dataclass(frozen=True)
class Retrieval(Measure):
    """`retrieval/image_to_text_<k>`, `retrieval/text_to_image_<k>`, and `retrieval/forget_...` of the target.

    The candidates are all eval images of the target and of the other names, and all names. A name has several
    images, so a hit is:

    - image to text: the image's own name is among the first k names;
    - text to image: *any* image of the name is among the first k images; a tie counts against it.

    Higher is better for the other names, lower for the target. n is the number of queries: images or names.

    Args:
        ks: How many places of the ranking count; each gives one pair of metrics.

    Raises:
        ValueError: A k is below 1 (`check`).

    Source: CLIP (arXiv 2103.00020), appendix E.1.
    """

    observes: ClassVar[type[Observer]] = Features

    ks: Annotated[Sequence[Count], MinLen(1)]

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a k is below 1."""
        if wrong := [k for k in self.ks if k < 1]:
            raise ValueError(f"eval.retrieval.ks: got {wrong[0]}, want numbers of at least 1")

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        sets = {"": task.eval.retain, "forget_": task.eval.forget}
        weights = features.classes(task.eval.retain.classes)
        images = {prefix: features.images(some) for prefix, some in sets.items()}
        labels = {prefix: torch.tensor(some.labels, dtype=torch.long) for prefix, some in sets.items()}
        pool, labels_of_pool = torch.cat(list(images.values())), torch.cat(list(labels.values()))
        metrics: dict[str, Metric] = {}
        for prefix, which, better in (("", "other", "higher"), ("forget_", "target", "lower")):
            names = labels[prefix].unique()
            places = first_hit(weights[names] @ pool.T, names[:, None] == labels_of_pool)
            for k in self.ks:
                hits = top_k(images[prefix], weights, labels[prefix], k).double()
                text = f"fraction of held-out images of {which} names whose name is among the first {k}"
                metrics[f"retrieval/{prefix}image_to_text_{k}"] = share(hits, _reading(text, better))
            for k in self.ks:
                text = (
                    f"fraction of {which} names with one of their images among the first {k} of {len(pool)}"
                )
                metrics[f"retrieval/{prefix}text_to_image_{k}"] = share(
                    (places <= k).double(), _reading(text, better)
                )
        return metrics


def _reading(text: str, better: str) -> Reading:
    return Reading(text, better, section=_SECTION)


def first_hit(similarities: Tensor, right: Tensor) -> Tensor:
    """(q,) the rank of each query's first right candidate, from 1; a tie counts against it.

    Args:
        similarities: (q, n) similarity of each query with each candidate.
        right: (q, n) bool: which candidates are right, at least one per query.

    >>> first_hit(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[False, True, True]])).tolist()
    [2]
    """
    best = (
        similarities.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
        if right.numel()
        else similarities
    )
    return 1 + (~(similarities < best) & ~right).sum(1)

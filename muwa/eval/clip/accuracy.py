"""Zero-shot accuracy on what was to be forgotten, on its neighbours, and on everything else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import counts, rate_interval, wilson
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric


def forget(features: Features, task: Task) -> dict[str, Metric]:
    """`forget/top1`, `forget/top5`: pictures of the forgotten names, recognised among all names. Lower is better.

    Source: SLUG's FA@1 and FA@5. Differs: on pictures that the search never saw.
    """
    reads = "share of held-out pictures of the forgotten whose own name is among the model's first {k} of {n} names"
    return {f"forget/top{k}": accuracy(features, task.eval.forget, k, "lower", reads) for k in (1, 5)}


def retain(features: Features, task: Task) -> dict[str, Metric]:
    """`retain/top1`, `retain/top5`: pictures of the other names, recognised among all names. Higher is better.

    Source: SLUG's TA_CA: the mean over names of each name's accuracy.
    """
    reads = (
        "share of held-out pictures of the other names whose own name is among the first {k} of {n} (mean over names)"
    )
    return {f"retain/top{k}": accuracy(features, task.eval.retain, k, "higher", reads) for k in (1, 5)}


def utility(features: Features, task: Task) -> dict[str, Metric]:
    """`utility/top1`: zero-shot classification of pictures that have nothing to do with the request. Higher is better.

    Source: SLUG's TA_IN (ImageNet zero-shot) with the templates of the task.
    """
    reads = "share of held-out unrelated pictures given their right class, of {n} (mean over classes)"
    return {"utility/top1": accuracy(features, task.eval.utility, 1, "higher", reads)}


def accuracy(features: Features, pictures: LabelledImages, k: int, better: str, reads: str) -> Metric:
    """Top-k accuracy, the mean over names of each name's, with its interval (`over_names`); n is the number of pictures.

    Args:
        reads: How to read it, with {k} and {n} for k and the number of names.
    """
    labels = torch.tensor(pictures.labels, dtype=torch.long)
    hits = top_k(features.images(pictures), features.classes(pictures.classes), labels, k)
    return Metric(*over_names(hits, labels), better, reads.format(k=k, n=len(pictures.classes.names)))


def over_names(hits: Tensor, labels: Tensor) -> tuple[float, int, float, float]:
    """(the mean over names of each name's share of hits, pictures, both ends of its 95 % interval).

    Of one name the interval is Wilson's of its pictures. Of several it is that of resampled names, each with its pictures:
    those of one name are recognised or missed together, and a name with many pictures counts no more than one with few.
    Few names resample coarsely, and not at all where all have the same share: it is never narrower than Wilson's of all
    pictures.

    Args:
        hits: (n,) bool, a picture each.
        labels: (n,) its name.
    """
    value, n = mean_over_classes(hits, labels), len(hits)
    names, place = labels.unique(return_inverse=True)
    if len(names) < 2:
        return value, n, *wilson(int(hits.sum()), n)
    each = np.bincount(place.numpy(), hits.double().numpy()) / np.bincount(place.numpy())
    ends = (*rate_interval(counts(len(each)) @ each / len(each), value, n), *wilson(value * n, n))
    return value, n, min(ends), max(ends)


def mean_over_classes(hits: Tensor, labels: Tensor) -> float:
    """The mean over classes of each class's mean; 0 when there are no pictures.

    >>> mean_over_classes(torch.tensor([True, True, False, True]), torch.tensor([0, 0, 0, 1])) == (2 / 3 + 1) / 2
    True
    """
    each = [hits[labels == label].double().mean().item() for label in labels.unique()]
    return sum(each) / len(each) if each else 0.0

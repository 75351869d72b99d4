"""Zero-shot accuracy on the forget set, on the retain set, and on the utility set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.ranks import top_k
from muwa.eval.so_far import sets_with, so_far
from muwa.eval.statistics import by_name, counts, most_frequent, rate_interval, wilson
from muwa.models.base import Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Split, Task
from muwa.types.metric import Metric, Outcomes, Reading

_TOP_K = {1: "the model's first guess", 5: "among the model's first five guesses"}


@dataclass(frozen=True)
class Forget(Measure):
    """`forget/top1`, `forget/top5`: forget images, recognised among all names. Lower is better.

    If names were forgotten before: `earlier/top1`, `so_far/top1` and the same with top5 (`muwa.eval.so_far`).

    The search computes the same rates on the probe images (`muwa.layer_search.evaluators.zero_shot.rates`).

    Source: SLUG's FA@1 and FA@5. Differs: on images that the search never saw.
    """

    observes: ClassVar[type[Observer]] = Features

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        images = task.eval.forget
        what = "fraction of held-out images of the target whose right name is"
        readings = {
            k: Reading(
                f"{what} {label}, of {len(images.classes.names)} names",
                better="lower",
                role="forgotten",
                in_objective=k == 1,
                label=label,
            )
            for k, label in _TOP_K.items()
        }
        metrics = {
            f"forget/top{k}": named_accuracy(features, images, k, reading) for k, reading in readings.items()
        }
        guessed = most_frequent(first_guesses(features, images))
        metrics["forget/top1"] = replace(metrics["forget/top1"], guessed=guessed)
        for k, reading in readings.items() if task.eval.earlier else ():
            rate = partial(_accuracy_with, features, task.eval, k)
            metrics |= so_far(f"top{k}", reading, rate)
        return metrics


@dataclass(frozen=True)
class Retain(Measure):
    """`retain/top1`, `retain/top5`: images of the other names, recognised among all names. Higher is better.

    Source: SLUG's TA_CA: the mean over names of each name's accuracy.
    """

    observes: ClassVar[type[Observer]] = Features

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        images = task.eval.retain
        what = "fraction of held-out images of the other names whose right name is"
        readings = {
            k: Reading(
                f"{what} {label}, of {len(images.classes.names)} names (mean over names)",
                role="kept",
                in_objective=k == 1,
                label="The other names" if k == 1 else "",
            )
            for k, label in _TOP_K.items()
        }
        return {
            f"retain/top{k}": named_accuracy(features, images, k, reading) for k, reading in readings.items()
        }


@dataclass(frozen=True)
class Utility(Measure):
    """`utility/top1`: zero-shot classification of images unrelated to the request. Higher is better.

    Source: SLUG's TA_IN (ImageNet zero-shot) with the templates of the task.
    """

    observes: ClassVar[type[Observer]] = Features

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        images = task.eval.utility
        reading = Reading(
            f"fraction of held-out unrelated images given their right class, of {len(images.classes.names)} "
            "(mean over classes)",
            role="kept",
            in_objective=True,
            label="Everything else",
        )
        return {"utility/top1": accuracy(features, images, 1, reading)}


def accuracy(features: Features, images: LabelledImages, k: int, reading: Reading) -> Metric:
    """Top-k accuracy: the mean over names, with the interval of `over_names`; n is the number of images."""
    hits, labels = _hits(features, images, k)
    return Metric(*over_names(hits, labels), reading, outcomes=outcomes(hits, labels, images.classes))


def named_accuracy(features: Features, images: LabelledImages, k: int, reading: Reading) -> Metric:
    """`accuracy` with the accuracy of each name."""
    hits, labels = _hits(features, images, k)
    each = outcomes(hits, labels, images.classes)
    rates = by_name(each.hits, each.groups)
    return Metric(*over_names(hits, labels), reading, by_name=rates, outcomes=each)


def first_guesses(features: Features, images: LabelledImages) -> list[str]:
    """The name that is nearest to each image."""
    if not len(images):
        return []
    nearest = (features.images(images) @ features.classes(images.classes).T).argmax(1)
    return [images.classes.names[place] for place in nearest.tolist()]


def outcomes(hits: Tensor, labels: Tensor, classes: Classes) -> Outcomes:
    """The single hits behind an accuracy, grouped by the name of their images.

    Args:
        hits: (n,) bool.
        labels: (n,) the index of each image's name in `classes`.
    """
    names = tuple(classes.names[label] for label in labels.tolist())
    return Outcomes(tuple(hits.double().tolist()), names)


def _accuracy_with(
    features: Features, split: Split, k: int, roles: frozenset[str], reading: Reading
) -> Metric:
    """`named_accuracy` of the sets with these roles together, whatever their classes."""
    hits: list[Tensor] = []
    names: list[str] = []
    for images in sets_with(split, roles):
        hits.append(_hits(features, images, k)[0])
        names += [images.classes.names[label] for label in images.labels]
    labels = torch.tensor([list(dict.fromkeys(names)).index(name) for name in names])
    every = torch.cat(hits)
    return Metric(*over_names(every, labels), reading, by_name=by_name(every.tolist(), names))


def _hits(features: Features, images: LabelledImages, k: int) -> tuple[Tensor, Tensor]:
    """(whether each image's own class is among its first k, the class of each image)."""
    labels = torch.tensor(images.labels, dtype=torch.long)
    return top_k(features.images(images), features.classes(images.classes), labels, k), labels


def over_names(hits: Tensor, labels: Tensor) -> tuple[float, int, float, float]:
    """(the mean over names of each name's hit rate, number of images, both ends of its 95 % interval).

    With one name it is Wilson's interval of its images. With several it comes from resampling names, each
    with all its images: images of one name are recognised or missed together, and each name counts the same
    however many images it has. Few names resample coarsely, and not at all if their rates are equal.
    Therefore the interval is never narrower than Wilson's of all images.

    Args:
        hits: (n,) bool, one per image.
        labels: (n,) the name of each image.
    """
    value, n = mean_over_classes(hits, labels), len(hits)
    names, place = labels.unique(return_inverse=True)
    if len(names) < 2:
        return value, n, *wilson(int(hits.sum()), n)
    each = np.bincount(place.numpy(), hits.double().numpy()) / np.bincount(place.numpy())
    ends = (*rate_interval(counts(len(each)) @ each / len(each), value, n), *wilson(value * n, n))
    return value, n, min(ends), max(ends)


def mean_over_classes(hits: Tensor, labels: Tensor) -> float:
    """The mean over classes of each class's mean; 0 when there are no images.

    >>> mean_over_classes(torch.tensor([True, False, True]), torch.tensor([0, 0, 1])) == (1 / 2 + 1) / 2
    True
    """
    each = [hits[labels == label].double().mean().item() for label in labels.unique()]
    return sum(each) / len(each) if each else 0.0

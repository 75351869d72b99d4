"""Is the model as sure as it is right? Calibration error and Brier score of its zero-shot guesses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from muwa.eval.base import Measure
from muwa.eval.statistics import mean, resamples
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count

_SECTION = "Calibration"
_RESAMPLES = 300  # for the interval of the calibration error


@dataclass(frozen=True)
class Calibration(Measure):
    """`calibration/<part>_ece` in [0, 1] and `calibration/<part>_brier` in [0, 2]; part: retain, utility.

        ECE   = sum over bins of (images in the bin / all images) * |accuracy - mean confidence|
        Brier = mean over images of sum over names (p - truth)^2

    p is the softmax over all names at the model's temperature; the confidence is its largest value. Lower is
    better.

    Args:
        bins: Number of bins of equal width that divide the range of the confidence.

    Raises:
        ValueError: `bins` is below 1 (`check`).

    Sources: Guo et al. (arXiv 1706.04599), section 2 (torchmetrics' l1 norm); Brier (1950). The interval of
    the ECE is the value ± 1.96 standard deviations of its resamples. Their quantiles cannot be taken: the ECE
    of resamples is too high on average.
    """

    observes: ClassVar[type[Observer]] = Features

    bins: Count

    def check(self, model: Editable, task: Task) -> None:
        """Raise if `bins` is below 1."""
        if self.bins < 1:
            raise ValueError(f"eval.calibration.bins: got {self.bins}, want at least 1")

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        metrics: dict[str, Metric] = {}
        for part, which in (("retain", "images of other names"), ("utility", "unrelated images")):
            images: LabelledImages = getattr(task.eval, part)
            p, labels = probabilities(features, images), torch.tensor(images.labels, dtype=torch.long)
            error = Reading(
                f"gap between confidence and accuracy on held-out {which} "
                f"({self.bins} bins; 0 is perfect calibration)",
                better="lower",
                section=_SECTION,
            )
            score = Reading(
                f"squared error of the probabilities on held-out {which}, "
                "summed over names (0 is certain and right)",
                better="lower",
                unit="squared error",
                section=_SECTION,
            )
            metrics[f"calibration/{part}_ece"] = calibration_error(p, labels, self.bins, error)
            metrics[f"calibration/{part}_brier"] = mean(brier(p, labels), score)
        return metrics


def probabilities(features: Features, images: LabelledImages) -> Tensor:
    """(n, names) softmax at the model's temperature, in double."""
    scale = features.model.scale.cpu().double()
    return (scale * (features.images(images) @ features.classes(images.classes).T)).softmax(-1)


def brier(p: Tensor, labels: Tensor) -> Tensor:
    """(n,) `sum over names (p - truth)^2` of each image.

    Args:
        p: (n, names) probabilities.
        labels: (n,) the right name of each image.

    >>> brier(torch.tensor([[0.75, 0.25]]), torch.tensor([0])).tolist()
    [0.125]
    """
    return (p - F.one_hot(labels, p.shape[1])).square().sum(1)


def calibration_error(p: Tensor, labels: Tensor, bins: int, reading: Reading) -> Metric:
    """ECE of the first guesses; 0 without an interval if there are no images.

    Args:
        p: (n, names) probabilities.
        labels: (n,) the right name of each image.
    """
    if not len(p):
        return Metric(0.0, 0, reading=reading)
    confidence, guess = p.max(1)
    right = (guess == labels).long()

    def error(rows: np.ndarray | slice) -> float:
        return float(binary_calibration_error(confidence[rows], right[rows], bins, "l1", validate_args=False))

    value = error(slice(None))
    deviation = float(np.std([error(rows) for rows in resamples(len(p))[:_RESAMPLES]]))
    return Metric(
        value, len(p), max(0.0, value - 1.96 * deviation), min(1.0, value + 1.96 * deviation), reading
    )

"""Does the model still know how sure it may be? Calibration error and Brier score of its zero-shot guesses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

from muwa.eval.statistics import drawn, mean
from muwa.models.clip.embeddings import Features
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric


def calibration(features: Features, task: Task, *, bins: int = 15) -> dict[str, Metric]:
    """`calibration/<part>_ece` in [0, 1] and `calibration/<part>_brier` in [0, 2], of retain and utility. Lower is better.

        ECE   = sum over bins of share of pictures * |accuracy - mean confidence|        Brier = mean of sum (p - truth)^2

    p is the softmax over all names at the model's temperature; confidence is its largest value.

    Args:
        bins: Of equal width, over the confidence.

    Raises:
        ValueError: `bins` is below 1.

    Sources: Guo et al. (arXiv 1706.04599), section 2 (torchmetrics' l1 norm); Brier (1950). The interval of the ECE is
    normal with the standard deviation of its resamples, whose mean is too high.
    """
    if bins < 1:
        raise ValueError(f"eval.calibration.bins: got {bins}, want at least 1")
    found: dict[str, Metric] = {}
    for part, who in (("retain", "of the other names"), ("utility", "that are unrelated")):
        pictures: LabelledImages = getattr(task.eval, part)
        p, labels = probabilities(features, pictures), torch.tensor(pictures.labels, dtype=torch.long)
        error = (
            f"gap between confidence and accuracy on held-out pictures {who} ({bins} bins; 0: as sure as it is right)"
        )
        found[f"calibration/{part}_ece"] = calibration_error(p, labels, bins, error)
        score = (
            f"squared error of the probabilities on held-out pictures {who}, summed over names (0: certain and right)"
        )
        found[f"calibration/{part}_brier"] = mean(brier(p, labels), "lower", score)
    return found


def probabilities(features: Features, pictures: LabelledImages) -> Tensor:
    """(n, names) softmax at the model's temperature, in double."""
    scale = features.model.scale.cpu().double()
    return (scale * (features.images(pictures) @ features.classes(pictures.classes).T)).softmax(-1)


def brier(p: Tensor, labels: Tensor) -> Tensor:
    """(n,) `sum over names (p - truth)^2` of each picture.

    >>> brier(torch.tensor([[0.75, 0.25]]), torch.tensor([0])).tolist()
    [0.125]
    """
    return (p - F.one_hot(labels, p.shape[1])).square().sum(1)


def calibration_error(p: Tensor, labels: Tensor, bins: int, reads: str) -> Metric:
    """ECE of the first guesses; 0 without an interval when there are none."""
    if not len(p):
        return Metric(0.0, 0, None, None, "lower", reads)
    confidence, guess = p.max(1)
    right = (guess == labels).long()

    def error(rows: np.ndarray | slice) -> float:
        one = binary_calibration_error(confidence[rows], right[rows], bins, "l1", validate_args=False)
        return float(one)

    value, sd = error(slice(None)), float(np.std([error(rows) for rows in drawn(len(p))[:300]]))
    return Metric(value, len(p), max(0.0, value - 1.96 * sd), min(1.0, value + 1.96 * sd), "lower", reads)

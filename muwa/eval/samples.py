"""Statistics of samples, each a `Metric` with its 95 % interval: Wilson's for shares, by resampling for everything else.

Resampling draws as many samples anew, with replacement, `RESAMPLES` times (Efron & Tibshirani 1993, chapter 13: the
percentile interval), always by the same seed: the same samples give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from muwa.eval.accuracy import wilson
from muwa.types import Metric, Pairs, Pictures, Task

RESAMPLES = 1000
Array = np.ndarray


def share(rates: Tensor, better: str, reads: str) -> Metric:
    """The mean of each picture's rate in [0, 1], with Wilson's interval of as many independent pictures.

    Several tries on one picture are one rate, so that they do not pass for more pictures than there are. 0 in [0, 1] when
    there are none.
    """
    mean = rates.double().mean().item() if len(rates) else 0.0
    low, high = wilson(mean * len(rates), len(rates))
    return Metric(mean, len(rates), low, high, better, reads)


def mean(values: Tensor, better: str, reads: str) -> Metric:
    """The mean of one value a sample; 0 without an interval when there are none."""
    each = values.double().numpy()
    if not len(each):
        return Metric(0.0, 0, None, None, better, reads)
    return Metric(float(each.mean()), len(each), *interval(counts(len(each)) @ each / len(each)), better, reads)


def counts(n: int, seed: int = 0) -> Array:
    """(RESAMPLES, n): how often each of `n` samples is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def drawn(n: int, seed: int = 0) -> Array:
    """(RESAMPLES, n): the samples of each resample, as indices into `n`."""
    return np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))


def interval(draws: Array) -> tuple[float, float]:
    """The middle 95 % of what the resamples gave."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def area(positive: Tensor, negative: Tensor, better: str, reads: str) -> Metric:
    """AUC: how often a positive sample scores higher than a negative one, a tie counting half. 0.5 is chance.

    Both kinds are resampled apart. Source: Mann & Whitney (1947); the area under the ROC curve (Hanley & McNeil 1982).
    """
    wins = (positive[:, None] > negative).double().numpy() + 0.5 * (positive[:, None] == negative).double().numpy()
    draws = (counts(len(positive)) @ wins * counts(len(negative), 1)).sum(1) / wins.size
    return Metric(float(wins.mean()), len(positive) + len(negative), *interval(draws), better, reads)


def caught(positive: Tensor, negative: Tensor, rate: float, better: str, reads: str) -> Metric:
    """The share of positive samples above the score that at most `rate` of the negative ones exceed.

    With fewer than 1 / rate negative samples that is the highest of them: no false alarm at all.

    Source: Carlini et al. (arXiv 2112.03570), section 3: the true-positive rate at a low false-positive rate.
    """
    yes, no = positive.double().numpy(), negative.double().numpy()
    place = len(no) - 1 - int(rate * len(no))
    above = (yes[drawn(len(yes))] > np.sort(no[drawn(len(no), 1)])[:, place, None]).mean(1)
    value = float((yes > np.sort(no)[place]).mean())
    return Metric(value, len(yes) + len(no), *interval(above), better, reads)


def spread(pictures: Pictures, n: int | None) -> Pictures:
    """`n` of the pictures, evenly over their order; all of them when `n` is None or there are no more.

    Raises:
        ValueError: `n` is below 1.
    """
    if n is None or n >= len(pictures):
        return pictures
    if n < 1:
        raise ValueError(f"eval: got {n} pictures to look at, want at least 1, or null for all")
    return pictures.select([i * len(pictures) // n for i in range(n)])


def of_others(task: Task) -> Pairs:
    """The retain pairs whose captions do not name the forgotten."""
    left_out = set(task.mentions)
    return task.retain.select([i for i in range(len(task.retain)) if i not in left_out])


def beside(found: Mapping[str, Metric]) -> dict[str, Metric]:
    """The same metrics, each "<name>_others" right after its "<name>"."""
    names = [name for name in found if not name.endswith("_others")]
    return {key: found[key] for name in names for key in (name, f"{name}_others") if key in found}

"""Statistics of samples, each a `Metric` with its 95 % interval: Wilson's for shares, by resampling for all else.

Resampling draws as many samples anew, with replacement, `RESAMPLES` times (Efron & Tibshirani 1993, chapter 13: the
percentile interval), always by the same seed: the same samples give the same interval. Where all resamples agree it says
nothing of what other samples would give: then a rate has Wilson's interval (`rate_interval`), another mean has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from muwa.types.data import LabelledImages, Pairs, Task
from muwa.types.metric import Metric

RESAMPLES = 1000
Array = np.ndarray


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion of `n` samples; (0, 1) when n is 0.

    Source: Wilson (1927), with z = 1.959964.

    >>> [round(x, 3) for x in wilson(0, 10)]
    [0.0, 0.278]
    """
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, successes / n
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def share(rates: Tensor, better: str, reads: str) -> Metric:
    """The mean of each picture's rate in [0, 1], with Wilson's interval of as many independent pictures.

    Several tries on one picture are one rate, so that they do not pass for more pictures than there are. 0 in [0, 1] when
    there are none.
    """
    mean = rates.double().mean().item() if len(rates) else 0.0
    low, high = wilson(mean * len(rates), len(rates))
    return Metric(mean, len(rates), low, high, better, reads)


def mean(values: Tensor, better: str, reads: str) -> Metric:
    """The mean of one value a sample; 0 when there are none. Without an interval where there are fewer than two samples."""
    each = values.double().numpy()
    if len(each) < 2:
        return Metric(float(each.sum()), len(each), None, None, better, reads)
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


def rate_interval(draws: Array, value: float, n: int) -> tuple[float, float]:
    """The `interval` of a value in [0, 1], widened to hold the value; Wilson's of `n` samples where all resamples agree.

    Any resample of 8 right answers is 8 right answers, and yet the next may be wrong: 8 of 8 show 68 % or more.

    >>> [round(x, 3) for x in rate_interval(np.ones(RESAMPLES), 1.0, 8)]
    [0.676, 1.0]
    """
    low, high = interval(draws)
    if high - low < 1e-9:
        low, high = wilson(value * n, n)
    return min(low, value), max(high, value)


def area(positive: Tensor, negative: Tensor, better: str, reads: str) -> Metric:
    """AUC: how often a positive sample scores higher than a negative one, a tie counting half. 0.5 is chance.

    Both kinds are resampled apart. Where all resamples agree, as when the two kinds stand apart, the interval is Wilson's of
    as many samples as the smaller kind has: 8 against 792 that never overlap show no more than 8 of 8 do.

    Source: Mann & Whitney (1947); the area under the ROC curve (Hanley & McNeil 1982).
    """
    wins = (positive[:, None] > negative).double().numpy() + 0.5 * (positive[:, None] == negative).double().numpy()
    draws = (counts(len(positive)) @ wins * counts(len(negative), 1)).sum(1) / wins.size
    value, smaller = float(wins.mean()), min(len(positive), len(negative))
    return Metric(value, len(positive) + len(negative), *rate_interval(draws, value, smaller), better, reads)


def caught(positive: Tensor, negative: Tensor, rate: float, better: str, reads: str) -> Metric:
    """The share of positive samples above the score that at most `rate` of the negative ones exceed.

    With fewer than 1 / rate negative samples that is the highest of them: no false alarm at all. The interval is Wilson's of
    the positive samples; the negative ones, and so the threshold, are taken as given.

    Source: Carlini et al. (arXiv 2112.03570), section 3: the true-positive rate at a low false-positive rate.
    """
    yes, no = positive.double().numpy(), negative.double().numpy()
    place = len(no) - 1 - int(rate * len(no))
    above = int((yes > np.sort(no)[place]).sum())
    return Metric(above / len(yes), len(yes) + len(no), *wilson(above, len(yes)), better, reads)


def spread(pictures: LabelledImages, n: int | None) -> LabelledImages:
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

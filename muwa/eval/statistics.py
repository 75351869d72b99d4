"""Statistics of samples, each a `Metric` with its 95 % interval: Wilson's for rates, by resampling otherwise.

A resample takes as many samples as there are, with replacement. There are `RESAMPLES` of them, and the
interval is the percentile interval of Efron & Tibshirani (1993), chapter 13. The seed is fixed, so the same
samples give the same interval. If all resamples agree, they say nothing about new samples: a rate then has
Wilson's interval (`rate_interval`), while that of another mean is a single point.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from muwa.types.data import LabelledImages
from muwa.types.metric import RATE, Change, Metric, NameRate, Outcomes, Reading

if TYPE_CHECKING:
    from torch import Tensor

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


def paired_change(before: Sequence[float], after: Sequence[float]) -> tuple[float, float, float]:
    """(Change of a rate, its 95 % interval: low, high), for the same samples before and after.

        after - before = (n01 - n10) / n

    n10 samples counted only before, n01 only after. The interval also holds where no sample changed: none of
    10 does not show that none of a million would.

    Args:
        before, after: (n,) each, n > 0, in [0, 1]; sample i is the same in both. A sample is a hit (1) or a
            miss (0), or the rate of several tries on it.

    Source: Newcombe (Statistics in Medicine 17, 1998, 2635-2650), method 10: Wilson's intervals of both
    rates, joined by the correlation phi of the pairs, with his continuity correction.

    >>> [round(x, 3) for x in paired_change([True] * 10, [False] * 10)]
    [-1.0, -1.0, -0.608]
    """
    x, y = np.asarray(before, float), np.asarray(after, float)
    n, first, last = len(x), float(x.sum()), float(y.sum())
    (low, high), (low_before, high_before) = wilson(last, n), wilson(first, n)
    cross = n * float(x @ y) - first * last  # of hits and misses: n11 n00 - n10 n01
    product = (n * float(x @ x) - first**2) * (n * float(y @ y) - last**2)
    phi = 0.0
    if product > 1e-9:
        phi = (max(cross - n / 2, 0) if cross > 0 else cross) / math.sqrt(product)
    rates = last / n, first / n
    down, up = rates[0] - low, high - rates[0]
    down_before, up_before = rates[1] - low_before, high_before - rates[1]
    change = rates[0] - rates[1]
    below = math.sqrt(max(0.0, down**2 - 2 * phi * down * up_before + up_before**2))
    above = math.sqrt(max(0.0, up**2 - 2 * phi * up * down_before + down_before**2))
    return change, max(-1.0, change - below), min(1.0, change + above)


def change_of(before: Metric, after: Metric) -> Change:
    """How an edit changed a rate, with its 95 % interval.

    If both metrics have their outcomes, the same samples are compared (`paired_change`). A mean over groups
    is also resampled by group, since samples of one group change together; the interval holds both. Without
    outcomes the two rates count as independent:

        low = change - sqrt((after - low_after)^2 + (high_before - before)^2), and the reverse for high

    Source of the last: Newcombe (Statistics in Medicine 17, 1998, 873-890), method 10.

    >>> change_of(Metric(0.5, 4, 0.2, 0.8), Metric(0.5, 4, 0.1, 0.9)).paired
    False
    """
    value = after.value - before.value
    one, other = before.outcomes, after.outcomes
    if one is not None and other is not None and one.hits and len(one.hits) == len(other.hits):
        ends = [*paired_change(one.hits, other.hits)[1:]]
        places = {group: i for i, group in enumerate(dict.fromkeys(one.groups))}
        if len(places) > 1:
            place = np.array([places[group] for group in one.groups])
            sums = np.bincount(place, np.subtract(other.hits, one.hits))
            each = sums / np.bincount(place)
            ends += interval(counts(len(each)) @ each / len(each))
        return Change(value, min(*ends, value), max(*ends, value), paired=True)
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return Change(value, None, None, paired=False)
    below = math.hypot(after.value - after.low, before.high - before.value)
    above = math.hypot(after.high - after.value, before.value - before.low)
    return Change(value, max(-1.0, value - below), min(1.0, value + above), paired=False)


def share(rates: Tensor, reading: Reading) -> Metric:
    """The mean of one rate per image, with Wilson's interval for that many independent images.

    Several tries on one image make one rate, so that they do not count as several images. No images give the
    value 0 with the interval (0, 1).

    Args:
        rates: (n,) in [0, 1].
    """
    mean = rates.double().mean().item() if len(rates) else 0.0
    low, high = wilson(mean * len(rates), len(rates))
    return Metric(mean, len(rates), low, high, reading, outcomes=Outcomes(tuple(rates.tolist())))


def by_name(hits: Sequence[float], names: Sequence[str]) -> dict[str, NameRate]:
    """Name -> the mean over its samples, in the order in which the names first appear.

    Args:
        hits: One value in [0, 1] per sample: whether it is a hit, or the rate of several tries on it.
        names: The name of each sample.

    >>> by_name([1, 0, 1], ["Ada Fox", "Ada Fox", "Bo Hill"])
    {'Ada Fox': NameRate(value=0.5, n=2), 'Bo Hill': NameRate(value=1.0, n=1)}
    """
    values: dict[str, list[float]] = {}
    for hit, name in zip(hits, names, strict=True):
        values.setdefault(name, []).append(float(hit))
    return {name: NameRate(sum(mine) / len(mine), len(mine)) for name, mine in values.items()}


def most_frequent(names: Iterable[str]) -> dict[str, int]:
    """Name -> how often it occurs, the most frequent first; of equally frequent ones, the first to appear.

    >>> most_frequent(["Bo Hill", "Ada Fox", "Ada Fox"])
    {'Ada Fox': 2, 'Bo Hill': 1}
    """
    return dict(Counter(names).most_common())


def mean(values: Tensor, reading: Reading) -> Metric:
    """The mean of one value per sample; 0 if there are none. Fewer than two samples give no interval.

    Args:
        values: (n,).
    """
    each = values.double().numpy()
    if len(each) < 2:
        return Metric(float(each.sum()), len(each), reading=reading)
    return Metric(float(each.mean()), len(each), *interval(counts(len(each)) @ each / len(each)), reading)


def over_people(values: Sequence[float], who: Sequence[str], reading: Reading) -> Metric:
    """The mean of all values, with the interval of resampled people, each with all their values.

    Values about one person are not independent, so n is the number of people. The interval of a rate is
    widened by `rate_interval`; other means of one person have none.

    Args:
        values: (n,), n > 0; in [0, 1] if `reading.unit` is a rate.
        who: (n,) the person whom each value is about.
        reading: How to read the mean; the numbers of values and people are added to its text.
    """
    people = {name: i for i, name in enumerate(dict.fromkeys(who))}
    place = np.array([people[name] for name in who])
    sums = np.bincount(place, np.asarray(values, dtype=float))
    sizes = np.bincount(place).astype(float)
    value, draws = float(sums.sum() / sizes.sum()), counts(len(people))
    means = draws @ sums / (draws @ sizes)
    reading = replace(
        reading, text=f"{reading.text} ({len(place)} values of {len(people)} {reading.counted})"
    )
    if reading.unit == RATE:
        return Metric(value, len(people), *rate_interval(means, value, len(people)), reading)
    if len(people) < 2:
        return Metric(value, len(people), reading=reading)
    return Metric(value, len(people), *interval(means), reading)


def counts(n: int, seed: int = 0) -> Array:
    """(RESAMPLES, n): how often each of `n` samples is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)


def resamples(n: int, seed: int = 0) -> Array:
    """(RESAMPLES, n): the samples of each resample, as indices into `n`."""
    return np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))


def interval(draws: Array) -> tuple[float, float]:
    """The middle 95 % of the values that the resamples gave."""
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def rate_interval(draws: Array, value: float, n: int) -> tuple[float, float]:
    """The `interval` of a value in [0, 1], widened to hold it.

    If all resamples agree, it is Wilson's interval of `n` samples.

    Every resample of 8 right answers has 8 right answers, yet the next answer may be wrong: 8 of 8 show that
    the rate is 68 % or more.

    >>> [round(x, 3) for x in rate_interval(np.ones(RESAMPLES), 1.0, 8)]
    [0.676, 1.0]
    """
    low, high = interval(draws)
    if high - low < 1e-9:
        low, high = wilson(value * n, n)
    return min(low, value), max(high, value)


def area(positive: Tensor, negative: Tensor, reading: Reading) -> Metric:
    """AUC: how often a positive sample scores higher than a negative one; a tie counts half. 0.5 is chance.

    Positive and negative samples are resampled separately. Where all resamples agree, as when the two never
    overlap, the interval is Wilson's for as many samples as the smaller side has: 8 against 792 show no more
    than 8 of 8 do.

    Args:
        positive: (p,) scores, p > 0.
        negative: (q,) scores, q > 0.

    Source: Mann & Whitney (1947); the area under the ROC curve (Hanley & McNeil 1982).
    """
    higher, tied = positive[:, None] > negative, positive[:, None] == negative
    wins = higher.double().numpy() + 0.5 * tied.double().numpy()
    draws = (counts(len(positive)) @ wins * counts(len(negative), 1)).sum(1) / wins.size
    value, smaller = float(wins.mean()), min(len(positive), len(negative))
    return Metric(value, len(positive) + len(negative), *rate_interval(draws, value, smaller), reading)


def caught(positive: Tensor, negative: Tensor, rate: float, reading: Reading) -> Metric:
    """The rate of positive samples above the score that at most `rate` of the negative ones exceed.

    With fewer than 1 / rate negative samples that score is their highest: no false alarm at all. The interval
    is Wilson's of the positive samples. The negative samples, and so the threshold, are taken as given.

    Args:
        positive: (p,) scores, p > 0.
        negative: (q,) scores, q > 0.
        rate: The rate of false positives that is allowed, in [0, 1).

    Source: Carlini et al. (arXiv 2112.03570), section 3: the true-positive rate at a low false-positive rate.
    """
    yes, no = positive.double().numpy(), negative.double().numpy()
    place = len(no) - 1 - int(rate * len(no))
    above = int((yes > np.sort(no)[place]).sum())
    return Metric(above / len(yes), len(yes) + len(no), *wilson(above, len(yes)), reading)


def spread(images: LabelledImages, n: int | None) -> LabelledImages:
    """`n` of the images, spread evenly over their order; all of them if `n` is None or not smaller.

    Raises:
        ValueError: `n` is below 1.
    """
    if n is None or n >= len(images):
        return images
    if n < 1:
        raise ValueError(f"eval: got {n} images to look at, want at least 1, or null for all")
    return images.select([i * len(images) // n for i in range(n)])


def interleaved(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The same metrics, each "<name>_others" right after its "<name>"."""
    names = [name for name in metrics if not name.endswith("_others")]
    return {key: metrics[key] for name in names for key in (name, f"{name}_others") if key in metrics}

import numpy as np
import pytest
import tiny
import torch
from sklearn.metrics import roc_auc_score

from muwa.eval.statistics import (
    RESAMPLES,
    area,
    caught,
    change_of,
    counts,
    interleaved,
    mean,
    over_people,
    paired_change,
    rate_interval,
    resamples,
    share,
    spread,
    wilson,
)
from muwa.types.metric import Metric, Outcomes, Reading

READING = Reading("r", better="lower", unit="auc", section="s")


def test_an_area_is_counted_in_pairs():
    """Pairs of (3, 1) and (2, 1, 0): 3 beats all three, 1 ties with one and beats one: 4.5 of 6."""
    found = area(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]), READING)
    assert found.value == pytest.approx(4.5 / 6)
    assert (found.n, found.reading) == (5, READING)
    assert 0 <= found.low < found.value < found.high <= 1


def test_an_area_is_that_of_scikit_learn_and_so_are_its_resamples():
    rng = np.random.default_rng(1)
    yes, no = rng.normal(0.5, 1, 30).round(1), rng.normal(0, 1, 50).round(1)
    found = area(torch.tensor(yes), torch.tensor(no), READING)
    truth = [1] * 30 + [0] * 50
    assert found.value == pytest.approx(roc_auc_score(truth, [*yes, *no]))
    weights = np.concatenate([counts(30), counts(50, 1)], 1)
    each = [roc_auc_score(truth, [*yes, *no], sample_weight=row) for row in weights[:200]]
    assert found.low == pytest.approx(np.quantile(each, 0.025), abs=0.03)
    assert found.high == pytest.approx(np.quantile(each, 0.975), abs=0.03)


def test_few_negatives_allow_no_false_alarm():
    yes, no = torch.tensor([5.0, 3.0, 1.0, 4.0]), torch.tensor([3.0, 2.0, 0.0])
    assert caught(yes, no, 0.01, READING).value == 0.5  # 5 and 4 are above 3; 3 is not
    assert caught(yes, no, 0.34, READING).value == 0.75  # one false alarm of three: above 2


def test_what_is_caught_has_wilsons_interval_of_the_positive_samples():
    """z^2 = 3.841: 2 of 2 are 2 / (2 + z^2) = 0.342 or more, 0 of 72 are z^2 / (72 + z^2) = 0.051 or less."""
    found = caught(torch.tensor([2.0, 3.0]), torch.zeros(200), 0.01, READING)
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.3424, 1.0), abs=5e-5)
    found = caught(torch.zeros(72), torch.ones(8), 0.01, READING)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0507), abs=5e-5)


@pytest.mark.parametrize(
    ("shift", "value", "low", "high"), [(2.0, 1, 0.6756, 1), (-2.0, 0, 0, 0.3244), (0.0, 0.5, 0.2152, 0.7848)]
)
def test_an_area_is_no_surer_than_its_smaller_side(shift, value, low, high):
    """8 against 792 that never overlap: 8 / (8 + z^2) = 0.6756. All tied: 1/2 -+ z / 2 / sqrt(8 + z^2) = 0.2152 and 0.7848."""
    few, many = torch.full((8,), shift), torch.zeros(792)
    found = area(few, many, READING)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=5e-5)
    turned = area(many, few, READING)
    assert (turned.low, turned.high) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_an_interval_holds_its_value():
    assert rate_interval(np.linspace(0.2, 0.3, 1000), 0.5, 4)[1] == 0.5
    assert rate_interval(np.array([1 / 3, 1 / 3 + 1e-16]), 1 / 3, 3) == wilson(1, 3)  # equal but for rounding


def test_a_share_counts_images_not_tries():
    found = share(torch.tensor([1.0, 0.5, 0.0, 0.0]), READING)
    assert (found.value, found.n, found.reading) == (0.375, 4, READING)
    assert (found.low, found.high) == wilson(1.5, 4)
    assert share(torch.zeros(0), READING).high == 1.0


def test_a_mean_has_the_interval_of_its_resamples():
    values = torch.tensor([0.0, 1.0] * 50)
    found = mean(values, READING)
    assert found.value == 0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.05, rel=0.15)
    assert mean(torch.zeros(0), READING) == Metric(0.0, 0, None, None, READING)


def test_one_sample_says_nothing_of_the_spread():
    found = mean(torch.tensor([0.25]), READING)
    assert found == Metric(0.25, 1, None, None, READING)


def test_resamples_are_as_large_as_the_samples_and_the_same_each_time():
    assert (counts(7).sum(1) == 7).all()
    assert (counts(7) == counts(7)).all()
    assert resamples(7).max() < 7
    assert resamples(7).shape == counts(7).shape == (RESAMPLES, 7)


def test_images_are_spread_evenly():
    images = tiny.pictures([1, 2, 3, 4, 5, 6])
    assert spread(images, 3).labels == (1, 3, 5)
    assert spread(images, None) is images
    assert spread(images, 6) is images
    with pytest.raises(ValueError, match="got 0 images to look at"):
        spread(images, 0)


def test_each_metric_of_others_follows_its_own():
    one = Metric(0.5, 2)
    assert list(interleaved({"a": one, "b": one, "a_others": one})) == ["a", "a_others", "b"]


def test_values_about_one_person_are_one_sample() -> None:
    """Three right ones about one person, one wrong about another: 3 of 4, but two people only."""
    found = over_people([1, 1, 1, 0], ["a", "a", "a", "b"], Reading("right", counted="people"))
    assert (found.value, found.n) == (0.75, 2)
    assert (found.low, found.high) == (0, 1)  # a resample may hold one of them twice
    assert found.reading.text == "right (4 values of 2 people)"
    same = over_people([1.0] * 8, ["a", "b"] * 4, Reading("right", counted="people"))
    assert (same.n, same.value, same.high) == (2, 1, 1)
    assert same.low == pytest.approx(0.342, abs=1e-3)  # Wilson's for 2 of 2
    cosines = over_people([0.5, 0.5, 0.1], ["a", "a", "b"], Reading("cosine", unit="cosine"))
    assert (cosines.value, cosines.low, cosines.high) == (
        pytest.approx(1.1 / 3),
        pytest.approx(0.1),
        pytest.approx(0.5),
    )
    assert over_people([0.5, 0.7], ["a", "a"], Reading("cosine", unit="cosine")).low is None


def paired(both: int, after: int, before: int, neither: int) -> list[list[bool]]:
    """Pairs before and after, from the four cells of their table."""
    rows = (
        [(True, True)] * both
        + [(False, True)] * after
        + [(True, False)] * before
        + [(False, False)] * neither
    )
    return [list(side) for side in zip(*rows, strict=True)]


def bounds(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval as the roots of (p - x)^2 = z^2 x (1 - x) / n."""
    p, z2 = successes / n, 1.959964**2
    return tuple(sorted(np.roots([1 + z2 / n, -2 * p - z2 / n, p * p]).real))


@pytest.mark.parametrize("cells", [(36, 12, 2, 0), (20, 12, 2, 16), (3, 1, 5, 4), (9, 0, 1, 9), (5, 3, 3, 5)])
def test_the_interval_of_a_paired_change_joins_wilsons_by_the_correlation_of_the_pairs(cells):
    before, after = paired(*cells)
    n, first, second = sum(cells), np.array(after, float), np.array(before, float)
    phi = np.corrcoef(first, second)[0, 1]
    cross = cells[0] * cells[3] - cells[1] * cells[2]
    if cross > 0:
        phi *= max(cross - n / 2, 0) / cross
    (l1, u1), (l2, u2) = bounds(sum(after), n), bounds(sum(before), n)
    p1, p2 = first.mean(), second.mean()
    below = np.array([p1 - l1, u2 - p2])
    above = np.array([u1 - p1, p2 - l2])
    join = np.array([[1, -phi], [-phi, 1]])
    change, low, high = paired_change(before, after)
    assert change == pytest.approx(p1 - p2)
    assert low == pytest.approx(p1 - p2 - (below @ join @ below) ** 0.5)
    assert high == pytest.approx(p1 - p2 + (above @ join @ above) ** 0.5)


def test_a_change_of_nothing_is_no_surer_than_its_samples():
    _, low, high = paired_change([True] * 54, [True] * 54)
    assert (low, high) == (pytest.approx(-0.0664, abs=5e-5), pytest.approx(0.0664, abs=5e-5))
    assert paired_change([False], [False])[1:] == (
        pytest.approx(-0.7935, abs=5e-5),
        pytest.approx(0.7935, abs=5e-5),
    )


def test_several_tries_on_a_sample_are_paired_by_their_rates():
    """Two of three wordings are right before, one after, for each of 6 images: Pearson's phi is undefined, so 0."""
    change, low, high = paired_change([2 / 3] * 6, [1 / 3] * 6)
    (l1, u1), (l2, u2) = bounds(2, 6), bounds(4, 6)
    assert change == pytest.approx(-1 / 3)
    assert low == pytest.approx(-1 / 3 - ((1 / 3 - l1) ** 2 + (u2 - 2 / 3) ** 2) ** 0.5)
    assert high == pytest.approx(-1 / 3 + ((u1 - 1 / 3) ** 2 + (2 / 3 - l2) ** 2) ** 0.5)


def of(hits, groups=()):
    return Metric(
        sum(hits) / len(hits), len(hits), 0.1, 0.9, outcomes=Outcomes(tuple(map(float, hits)), tuple(groups))
    )


def test_the_change_of_a_mean_over_names_is_no_surer_than_its_names():
    """One of four names loses all of its 20 images, the others none: resampled names lose 0 to 75 %."""
    groups = [name for name in "abcd" for _ in range(20)]
    before, after = of([1] * 80, groups), of([0] * 20 + [1] * 60, groups)
    plain = change_of(of([1] * 80), of([0] * 20 + [1] * 60))
    change = change_of(before, after)
    assert (change.value, change.paired) == (-0.25, True)
    assert (plain.low, plain.high) == pytest.approx(paired_change([1] * 80, [0] * 20 + [1] * 60)[1:])
    assert change.low == -0.75
    assert change.high == 0.0
    assert change.low < plain.low < plain.high < change.high


def test_without_the_same_samples_a_change_joins_two_independent_intervals():
    """0.8 (0.6 to 0.9) to 0.5 (0.3 to 0.6): -0.3, down by sqrt(0.2^2 + 0.1^2), up by sqrt(0.1^2 + 0.2^2)."""
    before, after = Metric(0.8, 9, 0.6, 0.9), Metric(0.5, 8, 0.3, 0.6)
    change = change_of(before, after)
    assert (change.value, change.paired) == (pytest.approx(-0.3), False)
    assert (change.low, change.high) == (pytest.approx(-0.3 - 0.05**0.5), pytest.approx(-0.3 + 0.05**0.5))
    assert change_of(of([1, 0]), of([1, 0, 1])).paired is False  # other samples
    assert change_of(Metric(0.8, 9), after).low is None
    assert change_of(Metric(1.0, 9, 0.0, 1.0), Metric(0.0, 9, 0.0, 1.0)).low == -1.0  # never below -1


def pairs(lost, wrong, n):
    """(before, after) of `n` samples: `lost` are missed only after, `wrong` before and after."""
    before = [1.0] * (n - wrong) + [0.0] * wrong
    return before, [0.0] * lost + before[lost:]


@pytest.mark.parametrize(("lost", "wrong", "n"), [(0, 0, 73), (0, 1, 82), (1, 0, 110)])
def test_the_number_of_samples_that_shows_a_loss_below_five_points(lost, wrong, n):
    """As docs/card.md says. Of the first: Wilson's interval of n of n begins at n / (n + 3.8415), 0.95 for n = 73."""
    assert pytest.approx(0.95, abs=1e-4) == 72.98 / (72.98 + 3.8415)
    assert paired_change(*pairs(lost, wrong, n))[1] >= -0.05 > paired_change(*pairs(lost, wrong, n - 1))[1]


def tango(lost, n):
    """The 95 % score interval of Tango (Statistics in Medicine 17, 1998, 891-908) where no sample was gained.

    A change d is in it if |-lost - n d| <= z sqrt(n (2 q + d (1 - d))), with q the likeliest rate of losses at d.
    """

    def score(d):
        b, c = -lost + (2 * n + lost) * d, -lost * d * (1 - d)
        q = ((b * b - 8 * n * c) ** 0.5 - b) / (4 * n)
        return (-lost - n * d) / max(n * (2 * q + d * (1 - d)), 1e-12) ** 0.5

    grid = np.linspace(-0.3, 0.2, 50_001)
    inside = [d for d in grid if abs(score(d)) <= 1.959964]
    return min(inside), max(inside)


@pytest.mark.parametrize("n", [60, 96, 120, 400])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_the_interval_comes_near_that_of_tango(lost, n):
    """Another method, which looks at changed samples alone: the ends that a verdict goes by differ by under 0.5 points."""
    assert paired_change(*pairs(lost, 2, n))[1] == pytest.approx(tango(lost, n)[0], abs=0.005)


@pytest.mark.parametrize(("lost", "wrong"), [(0.05, 0.02), (0.05, 0.15), (0.03, 0.2)])
def test_the_interval_holds_the_true_change_in_93_of_100_runs_or_more(lost, wrong):
    """1,000 runs of 96 samples, of which a true rate is lost and a true rate wrong before and after."""
    drawn = np.random.default_rng(0).multinomial(96, [lost, wrong, 1 - lost - wrong], 1000)
    counts, runs = np.unique(drawn[:, :2], axis=0, return_counts=True)
    ends = [paired_change(*pairs(*row, 96))[1:] for row in counts.tolist()]
    held = [low <= -lost <= high for low, high in ends]
    assert np.dot(held, runs) / 1000 >= 0.93

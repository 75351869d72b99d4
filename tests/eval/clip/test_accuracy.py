import numpy as np
import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.eval.clip.accuracy import Forget, Retain, Utility, mean_over_classes, over_names
from muwa.eval.statistics import wilson
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.data import Split


@pytest.fixture
def features(tmp_path):
    return Features(tiny.clip(), Run(Store(tmp_path)))


def logits(pictures):
    """(n, names) cosines, each picture and prompt encoded by itself."""
    model = tiny.clip()
    images = torch.cat([model.encode("vision", tiny.pixels([image])) for image in pictures.images])
    names = torch.cat(
        [model.encode("text", tiny.tokenize([prompt])) for prompt in pictures.classes.prompts()]
    )
    return (images @ names.T).detach().numpy()


def test_accuracies_are_those_of_a_sorted_list_of_names(features):
    pictures = tiny.pictures([1, 1, 2, 3, 4, 5, 5, 5, 6, 7])
    split = Split(pictures, pictures, pictures)
    scores = logits(pictures)
    right = scores.argmax(1) == np.array(pictures.labels)
    top1 = np.mean([right[np.array(pictures.labels) == label].mean() for label in set(pictures.labels)])
    assert Retain()(features, tiny.judged(split))["retain/top1"].value == pytest.approx(top1)
    assert Utility()(features, tiny.judged(split))["utility/top1"].value == pytest.approx(top1)
    one = tiny.pictures([3] * 6)
    k5 = np.mean([3 in row.argsort()[::-1][:5] for row in logits(one)])
    found = Forget()(features, tiny.judged(Split(one, pictures, pictures)))
    assert found["forget/top5"].value == pytest.approx(k5)
    assert [metric.n for metric in found.values()] == [6, 6]


def test_every_metric_says_what_is_better_and_how_to_read_it(features):
    split = tiny.split()
    found = {
        **Forget()(features, tiny.judged(split)),
        **Retain()(features, tiny.judged(split)),
        **Utility()(features, tiny.judged(split)),
    }
    assert list(found) == ["forget/top1", "forget/top5", "retain/top1", "retain/top5", "utility/top1"]
    readings = [metric.reading for metric in found.values()]
    assert [one.better for one in readings] == ["lower"] * 2 + ["higher"] * 3
    assert all("8" in one.text for one in readings)
    assert all(metric.low <= metric.high for metric in found.values())


def test_first_guesses_are_in_the_objective_and_have_a_verdict(features):
    """The headline's words; top-5 of the target has a verdict of its own, top-5 of the other names has none."""
    found = {
        **Forget()(features, tiny.task()),
        **Retain()(features, tiny.task()),
        **Utility()(features, tiny.task()),
    }
    fields = {name: (m.reading.role, m.reading.in_objective, m.reading.label) for name, m in found.items()}
    assert fields == {
        "forget/top1": ("forgotten", True, "the model's first guess"),
        "forget/top5": ("forgotten", False, "among the model's first five guesses"),
        "retain/top1": ("kept", True, "The other names"),
        "retain/top5": ("kept", False, ""),
        "utility/top1": ("kept", True, "Everything else"),
    }
    assert {(m.reading.unit, m.reading.section, m.reading.gone_at) for m in found.values()} == {
        ("rate", "", 0.0)
    }


def test_no_pictures_is_no_accuracy_and_no_certainty(features):
    nothing = tiny.pictures([])
    found = Retain()(features, tiny.judged(Split(nothing, nothing, nothing)))["retain/top1"]
    assert (found.value, found.n, found.low, found.high) == (0.0, 0, 0.0, 1.0)


def test_names_count_the_same_however_many_pictures_they_have():
    hits, labels = torch.tensor([True] * 8 + [False, False]), torch.tensor([0] * 8 + [1, 1])
    assert mean_over_classes(hits, labels) == 0.5


@pytest.mark.parametrize(("successes", "n", "low", "high"), [
    (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718),
    (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0),
])  # fmt: skip
def test_the_interval_is_wilsons(successes, n, low, high):
    """Rows 3, 4, 5 and 6 are method 3 of table I in Newcombe, Statistics in Medicine 17 (1998)."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_the_ends_of_the_interval_solve_wilsons_equation(n):
    """Each end p is where the observed share is z standard errors *of p* away: |k / n - p| = z sqrt(p (1 - p) / n)."""
    for k in range(n + 1):
        low, high = wilson(k, n)
        assert 0 <= low <= k / n <= high <= 1
        for p in (low, high):
            assert abs(k / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, abs=1e-6)


def test_of_one_name_the_interval_is_wilsons():
    hits = torch.tensor([True, False, False, False])
    assert over_names(hits, torch.tensor([3] * 4)) == (0.25, 4, *wilson(1, 4))


def test_of_several_names_the_interval_is_of_names_and_holds_the_mean():
    """98 of 98 and 0 of 2: the mean is 1/2; Wilson's of 98 of 100 begins at 0.93. Of two names a resample has the mean 0, 1/2
    or 1, the ends each in a quarter of the cases: 0 to 1."""
    hits, labels = torch.tensor([True] * 98 + [False] * 2), torch.tensor([0] * 98 + [1] * 2)
    assert wilson(98, 100)[0] > 0.9
    assert over_names(hits, labels) == (0.5, 100, 0.0, 1.0)


def test_of_two_names_it_is_no_narrower_than_of_their_pictures():
    """0 of 8 and 1 of 8: resampled names would end at 1/8."""
    hits, labels = torch.tensor([False] * 15 + [True]), torch.tensor([0] * 8 + [1] * 8)
    assert over_names(hits, labels) == (1 / 16, 16, 0.0, wilson(1, 16)[1])


def test_pictures_of_a_name_are_not_independent():
    """100 names, half of them always recognised: as wide as 100 samples are, 1.96 * 0.05, not as 800."""
    hits, labels = torch.tensor([True] * 400 + [False] * 400), torch.arange(100).repeat_interleave(8)
    value, n, low, high = over_names(hits, labels)
    assert (value, n) == (0.5, 800)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.05, rel=0.15)


def test_names_that_are_all_alike_have_wilsons_interval_of_all_pictures():
    """Each one of three, whose resamples differ by rounding alone; and 800 of 800."""
    labels = torch.arange(4).repeat_interleave(3)
    found = over_names(torch.tensor([True, False, False] * 4), labels)
    assert found == pytest.approx((1 / 3, 12, *wilson(4, 12)))
    every = over_names(torch.ones(800, dtype=torch.bool), torch.arange(100).repeat_interleave(8))
    assert every == pytest.approx((1.0, 800, *wilson(800, 800)))


@pytest.mark.parametrize("seed", range(20))
def test_an_interval_holds_its_value_whatever_the_numbers_of_pictures(seed):
    rng = np.random.default_rng(seed)
    labels = torch.tensor(rng.integers(0, rng.integers(1, 9), 60))
    hits = torch.tensor(rng.random(60) < rng.random(9)[labels.numpy()])
    value, _, low, high = over_names(hits, labels)
    assert 0 <= low <= value <= high <= 1
    assert low < high


def test_the_metric_has_that_interval(features):
    pictures = tiny.pictures([1, 1, 2, 3, 4, 5, 5, 5, 6, 7])
    right = torch.tensor(logits(pictures).argmax(1) == np.array(pictures.labels))
    found = Retain()(features, tiny.judged(Split(pictures, pictures, pictures)))["retain/top1"]
    assert (found.value, found.n, found.low, found.high) == over_names(right, torch.tensor(pictures.labels))


def test_no_pictures_of_any_kind_is_no_error(features):
    nothing = tiny.pictures([])
    split = Split(nothing, nothing, nothing)
    for metric in {
        **Forget()(features, tiny.judged(split)),
        **Retain()(features, tiny.judged(split)),
        **Utility()(features, tiny.judged(split)),
    }.values():
        assert (metric.value, metric.n, metric.low, metric.high) == (0.0, 0, 0.0, 1.0)


def test_a_model_whose_embeddings_are_nan_recognises_nobody(tmp_path):
    model = tiny.clip()
    broken = model.with_weights({"visual.proj": torch.full_like(model.weights["visual.proj"], float("nan"))})
    try:
        found = Retain()(Features(broken, Run(Store(tmp_path))), tiny.task())
    except ValueError:
        return
    assert found["retain/top1"].value == 0.0


def test_the_accuracy_of_each_name_is_kept_beside_the_mean(features):
    pictures = tiny.pictures([1, 1, 2, 3, 3, 3])
    right = logits(pictures).argmax(1) == np.array(pictures.labels)
    metric = Retain()(features, tiny.judged(Split(pictures, pictures, pictures)))["retain/top1"]
    names = pictures.classes.names
    assert {name: (rate.value, rate.n) for name, rate in metric.by_name.items()} == {
        names[label]: (right[np.array(pictures.labels) == label].mean(), n)
        for label, n in ((1, 2), (2, 1), (3, 3))
    }
    assert metric.value == pytest.approx(np.mean([rate.value for rate in metric.by_name.values()]))
    assert not Utility()(features, tiny.judged(Split(pictures, pictures, pictures)))["utility/top1"].by_name

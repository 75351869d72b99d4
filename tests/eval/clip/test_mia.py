from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from records import part
from scipy.stats import norm
from sklearn.model_selection import StratifiedKFold

from muwa.eval.clip.mia import (
    balanced_accuracy,
    forget_images,
    likelihood,
    log_odds,
    logistic,
    scores,
    with_bare_names,
)
from muwa.eval.statistics import area
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.data import Split
from muwa.types.metric import Reading


def mia(**changed):
    return replace(part("eval=[mia]")["mia"], **changed)


def test_the_likelihood_ratio_is_that_of_two_normals():
    known, truth = np.array([[1.0], [3.0], [0.0], [0.5]]), np.array([1, 1, 0, 0])
    want = norm.logpdf(1.5, 2, 1) - norm.logpdf(1.5, 0.25, 0.25)
    assert likelihood(known, truth, np.array([[1.5]])) == pytest.approx([want])
    assert np.isfinite(likelihood(np.ones((4, 1)), truth, np.array([[1.5]]))).all()


def test_a_member_is_told_by_an_attack_that_never_saw_it():
    """Each fold's scores are those of an attack fitted on the other folds, written out."""
    rng = np.random.default_rng(0)
    yes, no = torch.tensor(rng.normal(1, 1, (9, 2))), torch.tensor(rng.normal(0, 1, (6, 2)))
    members, others = scores(logistic, yes, no, folds=3, seeds=[4])
    values, truth, want = np.concatenate([yes, no]), np.array([1] * 9 + [0] * 6), np.zeros(15)
    for known, asked in StratifiedKFold(3, shuffle=True, random_state=4).split(values, truth):
        want[asked] = logistic(values[known], truth[known], values[asked])
    assert torch.cat([members, others]).numpy() == pytest.approx(want)
    assert len(scores(logistic, yes, no[:2], folds=10, seeds=[0])[1]) == 2  # as many folds as fit


@pytest.mark.parametrize(("shift", "low", "high"), [(3.0, 0.95, 1.0), (0.0, 0.3, 0.65), (-3.0, 0.95, 1.0)])
def test_either_side_may_score_higher(shift, low, high):
    """Normals of width 1: three apart, the area is Phi(3 / sqrt(2)) = 0.983, whichever side is the higher."""
    rng = np.random.default_rng(2)
    yes, no = torch.tensor(rng.normal(shift, 1, (60, 1))), torch.tensor(rng.normal(0, 1, (60, 1)))
    for attack in (likelihood, logistic):
        members, others = scores(attack, yes, no, folds=10, seeds=range(3))
        assert low <= area(members, others, Reading()).value <= high


def test_odds_stay_finite_however_sure_the_model_is():
    loss = torch.tensor([[0.0, np.log(2)], [0.0, -np.log(0.9)], [0.0, 0.0], [0.0, 50.0]], dtype=torch.double)
    found = log_odds(loss)[:, 0]
    assert found[:2].tolist() == pytest.approx([0.0, np.log(9)], abs=1e-9)
    assert found[2].isfinite()
    assert found[3].item() == pytest.approx(-50.0)


def test_accuracy_counts_both_sides_alike():
    found = balanced_accuracy(torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, 1.0]), Reading())
    assert found.value == (0.75 + 0.5) / 2
    assert found.n == 6


def test_an_accuracy_is_no_surer_than_its_smaller_side():
    """Every answer right, of 100 and of 8: as of 8 of 8, 8 / (8 + 3.841) = 0.6756; every answer wrong: the other way round."""
    found = balanced_accuracy(torch.ones(100), -torch.ones(8), Reading())
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 0.6756, 1.0), abs=5e-5)
    found = balanced_accuracy(-torch.ones(8), torch.ones(100), Reading())
    assert (found.value, found.low, found.high) == pytest.approx((0.0, 0.0, 0.3244), abs=5e-5)


def test_the_same_caption_stands_under_both_sides():
    task = tiny.task()
    members, held_out = forget_images(task), with_bare_names(task.probe.forget, task.eval.forget)
    assert members.classes == held_out.classes
    assert members.classes.templates == ("{}",)
    assert (len(members), len(held_out)) == (6, 4)
    assert set(members.labels) == set(held_out.labels) == {0}


def test_pairs_that_stand_apart_are_told_and_like_ones_are_not():
    """The held-out pictures are those of another colour; then pictures like the pairs."""
    task, features = tiny.task(), Features(tiny.clip(), Run())
    other = replace(tiny.pictures([3] * 10), labels=(0,) * 10)
    apart = replace(task, probe=Split(other, task.probe.retain, task.probe.utility), forget={tiny.NAMES[0]: tiny.pairs(10, names=tiny.NAMES[:1])},
                    eval=replace(task.eval, forget=tiny.pictures([0])))  # fmt: skip
    found = mia(folds=5, seeds=2)(features, apart)
    assert found["mia/logistic_auc"].value > 0.85
    like = replace(apart, probe=replace(apart.probe, forget=tiny.pictures([0] * 10, start=70)))
    assert mia(folds=5, seeds=2)(features, like)["mia/logistic_auc"].value < 0.8


def test_every_attack_has_its_interval():
    found = mia(seeds=2)(Features(tiny.clip(), Run()), tiny.task())
    assert list(found) == ["mia/logistic_auc", "mia/logistic_tpr", "mia/likelihood_auc", "mia/likelihood_tpr",
                           "mia/release_auc", "mia/release_accuracy"]  # fmt: skip
    assert {metric.n for metric in found.values()} == {10, 9}
    for metric in found.values():
        assert 0 <= metric.low <= metric.high <= 1
        assert metric.reading.better == "lower"
    assert {name: metric.reading.unit for name, metric in found.items()} == {
        name: "auc" if name.endswith("_auc") else "rate" for name in found
    }
    assert mia(seeds=2)(Features(tiny.clip(), Run()), tiny.task()) == found


def test_settings_are_checked():
    with pytest.raises(ValueError, match="eval.mia.folds: got 1, want at least 2"):
        mia(folds=1).check(tiny.clip(), tiny.task())
    with pytest.raises(ValueError, match="eval.mia.false_positives: got 0"):
        mia(false_positives=0).check(tiny.clip(), tiny.task())
    few = replace(tiny.task(), probe=Split(tiny.pictures([]), *[tiny.pictures([1])] * 2))
    few = replace(few, eval=replace(few.eval, forget=tiny.pictures([0])))
    with pytest.raises(ValueError, match="eval.mia: got 1 held-out images of the target, want at least 2"):
        mia().check(tiny.clip(), few)
    with pytest.raises(ValueError, match="eval.mia.seeds: got 0, want at least 1"):
        mia(seeds=0).check(tiny.clip(), tiny.task())
    with pytest.raises(ValueError, match="eval.mia: got 1 forget pairs, want at least 2; leave mia out"):
        mia().check(tiny.clip(), replace(tiny.task(), forget={tiny.NAMES[0]: tiny.pairs(1)}))
    mia().check(tiny.clip(), tiny.task())

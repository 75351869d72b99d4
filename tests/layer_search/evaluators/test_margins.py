"""How far a name is from a stranger's, and how the margins of what is kept fall: by hand."""

from dataclasses import replace

import pytest
import tiny
import torch

from muwa.layer_search.evaluators.margins import Margins, margins_of
from muwa.layer_search.evaluators.zero_shot import ZeroShotEvaluator
from muwa.models.clip.embeddings import Features
from muwa.run import Run

NOTHING = torch.zeros(0)
BEFORE = Margins(
    forget=torch.tensor([0.8, 0.9, 0.7]),
    names=("Ada", "Bo", "Ada"),
    strangers={"Ada": torch.tensor([0.1, 0.3]), "Bo": torch.tensor([0.2, 0.2, 0.5])},
    kept=(torch.tensor([0.3, -0.1, 0.2]), torch.tensor([0.4])),
)


def test_a_bound_is_the_distance_from_what_strangers_have():
    """Ada: mean 0.75, strangers 0.2 with a deviation of 0.2 / sqrt(2). Bo: 0.9, strangers 0.3 and 0.3 / sqrt(3)."""
    assert BEFORE.forget_bounds(BEFORE, 0.0) == pytest.approx({"Ada": 0.55, "Bo": 0.6})
    bounds = BEFORE.forget_bounds(BEFORE, 2.0)
    assert bounds == pytest.approx({"Ada": 0.55 - 2 * 0.2 / 2**0.5, "Bo": 0.6 - 2 * 0.3 / 3**0.5})


def test_the_strangers_of_the_unedited_model_count():
    after = replace(BEFORE, forget=torch.tensor([0.1, 0.6, 0.2]), strangers={"Ada": NOTHING, "Bo": NOTHING})
    assert after.forget_bounds(BEFORE, 0.0) == pytest.approx({"Ada": -0.05, "Bo": 0.3})


@pytest.mark.parametrize("few", [NOTHING, torch.tensor([0.1])])
def test_without_others_to_compare_with_there_is_no_bound(few):
    before = replace(BEFORE, strangers={"Ada": few, "Bo": torch.tensor([0.1, 0.2])})
    assert list(before.forget_bounds(before, 1.0)) == ["Bo"]


def test_one_image_is_its_own_mean():
    one = replace(BEFORE, forget=torch.tensor([0.9]), names=("Bo",))
    assert one.forget_bounds(BEFORE, 0.0) == pytest.approx({"Bo": 0.6})


def test_only_falls_of_kept_margins_count_and_both_sets_weigh_the_same():
    """Retain: a fall of 0.1 and one of 0.2 in three images, a rise that does not make up for them; utility: 0.3 in one."""
    after = replace(BEFORE, kept=(torch.tensor([0.2, 0.9, 0.0]), torch.tensor([0.1])))
    assert after.kept_change(BEFORE) == pytest.approx(-(0.3 / 3 + 0.3) / 2)
    assert BEFORE.kept_change(BEFORE) == 0
    better = replace(BEFORE, kept=(torch.tensor([0.5, 0.9, 0.4]), torch.tensor([0.7])))
    assert better.kept_change(BEFORE) == 0


def test_a_set_without_images_does_not_count():
    before = replace(BEFORE, kept=(NOTHING, torch.tensor([0.4])))
    assert replace(before, kept=(NOTHING, torch.tensor([0.1]))).kept_change(before) == pytest.approx(-0.3)
    none = replace(BEFORE, kept=(NOTHING, NOTHING))
    assert none.kept_change(none) == 0


def test_margins_come_from_embeddings():
    """Unit vectors as names. Retain images of names 1 to 7 have a cosine with name 0; margins are over the next name."""
    probe = {"forget": tiny.pictures([0, 0]), "retain": tiny.pictures([1, 2]), "utility": tiny.pictures([])}
    names = torch.eye(8)
    images = {
        "forget": torch.tensor([[0.6, 0.8, *[0.0] * 6], [1.0, *[0.0] * 7]]),
        "retain": torch.tensor([[0.28, 0.96, *[0.0] * 6], [0.8, 0.0, 0.6, *[0.0] * 5]]),
        "utility": torch.zeros(0, 8),
    }
    got = margins_of(probe, images, {probe["forget"].classes.fingerprint: names})
    assert got.names == ("Ada Fox", "Ada Fox")
    assert got.forget.tolist() == pytest.approx([0.6, 1.0])
    assert {name: others.tolist() for name, others in got.strangers.items()} == {
        "Ada Fox": pytest.approx([0.28, 0.8])
    }
    assert got.kept[0].tolist() == pytest.approx([0.96 - 0.28, 0.6 - 0.8])
    assert len(got.kept[1]) == 0


def test_the_margins_of_a_model_are_those_of_its_rates():
    """A retain image has a margin above 0 if and only if it counts in the rate."""
    evaluator = ZeroShotEvaluator(Features(tiny.clip(), Run()), tiny.split(), [])
    margins, rates = evaluator.margins(), evaluator()
    for kept, name in zip(margins.kept, ("retain", "utility"), strict=True):
        assert (kept > 0).double().mean().item() == pytest.approx(rates[f"{name}_top1"])
    assert margins.forget.mean().item() == pytest.approx(rates["forget_cosine"], abs=1e-6)

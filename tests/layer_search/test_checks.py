import pytest
import tiny

from muwa.eval.statistics import wilson
from muwa.layer_search import checks
from muwa.models.clip.embeddings import Features
from muwa.models.diffusion.image_generation import ImageGenerator


def test_a_model_of_another_family_is_told_which_search_fits():
    assert checks.check_family("layer_search=grid", Features, tiny.clip()) is None
    message = (
        r"layer_search=generation: got a CLIP \(.*\) \(tiny\), want a text-to-image model \(.*\); "
        "take layer_search=pareto_bisect, grid or fixed"
    )
    with pytest.raises(ValueError, match=message):
        checks.check_family("layer_search=generation", ImageGenerator, tiny.clip())


@pytest.mark.parametrize(("check", "right", "wrong", "message"), [
    (checks.check_at_least_1, 1, 0, "layer_search.key: got 0, want at least 1"),
    (checks.check_above_0, 0.1, 0.0, "layer_search.key: got 0.0, want more than 0"),
    (checks.check_between_0_and_1, 0.5, 0, r"layer_search.key: got 0, want a rate in \(0, 1\)"),
    (checks.check_between_0_and_1, 0.5, 1, "layer_search.key: got 1, want"),
])  # fmt: skip
def test_a_number_out_of_range_is_named(check, right, wrong, message):
    assert check(key=right) is None
    with pytest.raises(ValueError, match=message):
        check(other=right, key=wrong)


def test_towers_are_one_or_both():
    assert checks.check_towers(["text"]) is None
    assert checks.check_towers(["vision", "text"]) is None
    for towers, got in ((["visual"], r"\['visual'\]"), ([], r"\[\]")):
        with pytest.raises(ValueError, match=f"layer_search.towers: got {got}, want some of vision, text"):
            checks.check_towers(towers)


def test_exactly_one_kind_of_step():
    assert checks.check_one_kind_of_step(steps=[1.0], relative_steps=None) is None
    assert checks.check_one_kind_of_step(step=None, relative_step=0.1) is None
    for steps in ((1.0, 0.1), (None, None)):
        with pytest.raises(ValueError, match=r"give exactly one of step .lambda. and relative_step .of"):
            checks.check_one_kind_of_step(step=steps[0], relative_step=steps[1])


def test_an_unknown_layer_is_answered_with_the_nearest():
    assert checks.check_layers(tiny.clip(), "tensor", ["visual.proj"]) is None
    message = r"layer_search.layer: 'visual.prj' is not one of the \d+ candidates at granularity=tensor. Nearest: visual.proj"
    with pytest.raises(ValueError, match=message):
        checks.check_layers(tiny.clip(), "tensor", ["visual.proj", "visual.prj"])
    with pytest.raises(ValueError, match=r"Nearest: text_projection\."):  # the first, where none is near
        checks.check_layers(tiny.clip(), "tensor", ["???"])
    with pytest.raises(
        ValueError, match="layer_search.granularity: got 'block', want one of tensor, qkv, mlp, head"
    ):
        checks.check_layers(tiny.clip(), "block")


@pytest.mark.parametrize("forget_at_most", [0.25, 0.1, 0.5])
def test_the_least_number_of_samples_is_the_first_whose_interval_fits(forget_at_most):
    least = next(n for n in range(1, 100) if wilson(0, n)[1] <= forget_at_most)
    assert checks.check_enough("layer_search.pictures", least, forget_at_most) is None
    with pytest.raises(ValueError, match=rf"layer_search.pictures={least - 1}: .* Take at least {least}$"):
        checks.check_enough("layer_search.pictures", least - 1, forget_at_most)

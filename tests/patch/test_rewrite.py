import pytest
import torch

from muwa.patch.apply import Patch
from muwa.patch.rewrite import on_top, putting_on, reordered, taking_off

HUGE, SMALL = torch.tensor([3e7]), torch.tensor([1.0])  # 1 + 3e7 - 3e7 is 0 in fp32


def patch(base, delta):
    return Patch({"w": torch.tensor(delta)}, {"w": torch.tensor(base)}, "f", (), {})


def test_a_patch_goes_on_and_off_worked_by_hand():
    one = patch([1.0, 2.0], [0.5, -1.0])
    assert putting_on(one).new_values({"w": torch.tensor([1.0, 2.0])}, "x")["w"].tolist() == [1.5, 1.0]
    assert taking_off(one).new_values({"w": torch.tensor([1.5, 1.0])}, "x")["w"].tolist() == [1.0, 2.0]


def test_what_stays_is_what_the_others_alone_give_though_subtracting_would_not():
    first, second = patch([1.0], [3e7]), patch([3e7 + 1], [0.25])
    now = SMALL + HUGE + 0.25
    assert not torch.equal(now - HUGE, SMALL + 0.25)
    change = reordered({"w": SMALL}, [first, second], [second])
    assert change.new_values({"w": now}, "x")["w"].tolist() == [1.25]


def test_half_precision_is_rounded_after_every_patch():
    first, second = patch([1.0], [0.0004]), patch([1.0], [0.0004])  # each alone is lost in fp16
    change = reordered({"w": SMALL}, [], [first, second])
    assert change.new_values({"w": SMALL.half()}, "x")["w"].tolist() == [1.0]
    assert change.new_values({"w": SMALL}, "x")["w"].item() == pytest.approx(1.0008)


def test_on_top_asks_nothing_of_the_weights():
    change = on_top([patch([1.0], [0.5])])
    assert change.new_values({"w": torch.tensor([7.0])}, "x")["w"].tolist() == [7.5]
    assert not change.takes_off


@pytest.mark.parametrize(("change", "now", "message"), [
    (putting_on(patch([1.0], [0.5])), [1.5], "the patch is applied already: here is its base plus its delta"),
    (putting_on(patch([1.0], [0.5])), [9.0], r"wrong base: 1 of the 1 tensors .* add PATCH MODEL --out DIR"),
    (taking_off(patch([1.0], [0.5])), [1.0], "the patch is not on here: the tensors it touches are not"),
    (reordered({"w": SMALL}, [patch([1.0], [0.5])] * 2, []), [1.5], "these 2 patches are not on here in this order: w"),
])  # fmt: skip
def test_weights_that_are_not_what_they_must_be_are_refused(change, now, message):
    with pytest.raises(ValueError, match=message):
        change.new_values({"w": torch.tensor(now)}, "here")

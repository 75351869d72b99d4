from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import tiny
import torch

from muwa.methods._unet import log_losses, train_weights, unet_edit
from muwa.run import Run

HALVES = partial(torch.optim.SGD, lr=0.5)


def square(weights):
    return weights["w"].square().sum() / 2  # its gradient is w


def test_training_worked_by_hand():
    """2 -> 2 - 0.5 * 2 = 1 -> 0.5; the loss before each step is 2 and 0.5."""
    start = {"w": torch.tensor([2.0]), "unused": torch.ones(1)}
    found = train_weights(start, HALVES, square, iterations=2, run=Run())
    assert found["losses"] == [2.0, 0.5]
    assert {name: delta.tolist() for name, delta in found["deltas"].items()} == {"w": [-1.5]}
    assert start["w"].tolist() == [2.0]


def test_clipping_worked_by_hand():
    """Both gradients are longer than 1, so both steps have length 0.5."""
    found = train_weights({"w": torch.tensor([2.0])}, HALVES, square, iterations=2, max_norm=1.0, run=Run())
    assert found["deltas"]["w"].item() == pytest.approx(-1.0, abs=1e-5)


def test_half_precision_is_trained_as_fp32():
    found = train_weights(
        {"w": torch.tensor([2.0], dtype=torch.float16)}, HALVES, square, iterations=1, run=Run()
    )
    assert found["deltas"]["w"].dtype == torch.float32


def test_a_loss_that_is_not_finite_ends_the_training():
    with pytest.raises(
        ValueError, match=r"method.learning_rate: the loss is inf at step 1; use a lower learning rate"
    ):
        train_weights({"w": torch.tensor([1e30])}, HALVES, square, iterations=2, run=Run())


def test_each_loss_is_logged_with_its_step():
    rows = []
    log_losses(tiny.task(), [0.5, 0.25], Run(log=lambda event, row: rows.append((event, row))))
    assert rows == [
        ("loss", {"concept": "Ada Fox", "step": step, "loss": loss}) for step, loss in ((1, 0.5), (2, 0.25))
    ]


def test_an_edit_has_one_move_a_name_and_its_size_is_that_of_what_changed():
    """|delta| = 5 and |theta| = 10 over the tensor that changes; the other tensor does not count."""
    model = SimpleNamespace(weights=lambda component: {"a": torch.tensor([6.0, 8.0]), "b": torch.ones(9)})
    task = replace(tiny.task(), names=tiny.NAMES[:2])
    edit = unet_edit(model, task, {"a": torch.tensor([3.0, -4.0])}, "keys", 0.7, 12)
    assert list(edit.deltas) == ["unet/a"]
    assert [(move.concept, move.tower, move.layer, move.step) for move in edit.moves] == [
        (name, "unet", "keys", 0.7) for name in tiny.NAMES[:2]
    ]
    assert [move.relative_norm for move in edit.moves] == pytest.approx([0.5, 0.5])
    assert edit.samples == 12
    assert unet_edit(model, task, {}, "keys", 0.7).moves[0].relative_norm == 0.0

import naive
import numpy as np
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import mean_gradients
from muwa.methods._edits import forget_pairs, retain_pairs
from muwa.methods.salun import forget_gradient, largest
from muwa.run import Run

SETTINGS = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 4, "rule": "first"}


def test_the_mask_worked_by_hand():
    """Of 7 weights half is 4 (round half to even of 3.5): 5, 4, -3 and the first of the equal 2s."""
    gradient = {"a": torch.tensor([[1.0, -3.0], [2.0, 0.0]]), "b": torch.tensor([2.0, 5.0, -4.0])}
    mask = largest(gradient, 0.5)
    assert {name: some.int().tolist() for name, some in mask.items()} == {
        "a": [[0, 1], [1, 0]],
        "b": [0, 1, 1],
    }
    assert all(some.all() for some in largest(gradient, 1.0).values())
    assert sum(int(some.sum()) for some in largest(gradient, 0.01).values()) == 0
    assert largest({"a": torch.zeros(4)}, 0.5)["a"].tolist() == [True, True, False, False]


def test_the_mask_is_that_of_a_full_stable_sort():
    generator = torch.Generator().manual_seed(3)
    gradient = {name: torch.randint(-9, 10, shape, generator=generator).float() for name, shape in
                (("x", (7, 5)), ("y", (11,)), ("z", ()), ("w", (2, 3, 4)))}  # fmt: skip
    flat = np.concatenate([g.numpy().ravel() for g in gradient.values()])
    for share in (0.1, 0.5, 0.77):
        order = np.argsort(-np.abs(flat), kind="stable")[: round(share * flat.size)]
        want = np.zeros(flat.size, bool)
        want[order] = True
        got = np.concatenate([some.numpy().ravel() for some in largest(gradient, share).values()])
        assert (got == want).all()


def test_it_is_the_naive_masked_loop_and_the_rest_keeps_its_bits(tmp_path):
    model, task = tiny.clip(), tiny.task()
    salun = part("method=salun", **SETTINGS)
    edit = salun(model, task, Run(Store(tmp_path)))
    net, pairs = naive.network(model), forget_pairs(task)
    total = {name: torch.zeros_like(w) for name, w in model.weights.items()}
    for batch in naive.batches(6, 4, 0):
        for name, g in naive.gradient(net, pairs, batch, "cosine").items():
            total[name] += len(batch) / 6 * g
    mask = largest(forget_gradient(model, task, salun.recipe, Run(Store(tmp_path))), 0.5)
    least = min(total[name][some].abs().min().item() for name, some in mask.items() if some.any())
    most = max(total[name][~some].abs().max().item() for name, some in mask.items() if not some.all())
    assert least == pytest.approx(
        most, rel=0.01
    )  # the half with the largest gradients, but for rounding at the border
    assert sum(int(some.sum()) for some in mask.values()) == round(
        0.5 * sum(w.numel() for w in model.weights.values())
    )
    want = naive.train(model, [(pairs, "cosine", -1), (retain_pairs(task), "contrastive", 1)], epochs=1, batch_size=4,
                       learning_rate=1e-3, mask=mask)  # fmt: skip
    assert naive.apart(edit.deltas, want) < 0.03
    edited = model.edited(edit)
    assert all(
        torch.equal(edited.weights[name][~some], model.weights[name][~some]) for name, some in mask.items()
    )
    assert edit.samples == (6 + 10) + 6


def test_the_gradient_is_that_of_slug_and_may_come_from_a_file(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path)
    salun = part("method=salun", **SETTINGS)
    found = mean_gradients(model, task, "Ada Fox", salun.recipe, Run(store))
    want = salun(model, task, Run(store))
    assert store.events["gradients/forget"] == "partial"  # computed for the one, read back for the other
    write_gradients(tmp_path / "g", found)
    other = Store(tmp_path / "other")
    run = Run(other, gradient_file=tmp_path / "g")
    edit = salun(model, task, run)
    assert "gradients/forget" not in other.events
    assert naive.apart(edit.deltas, want.deltas) < 1e-3
    write_gradients(tmp_path / "alone", found.without_retain())
    alone = salun(model, task, Run(other, gradient_file=tmp_path / "alone"))
    assert naive.apart(alone.deltas, want.deltas) < 1e-3
    with pytest.raises(ValueError, match="computed from something else"):
        part("method=salun", **{**SETTINGS, "batch_size": 3})(model, task, run)

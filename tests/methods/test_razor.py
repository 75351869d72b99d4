from dataclasses import replace

import naive
import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.gradients.mean import Recipe
from muwa.methods._selection import EditEvaluator, forget_pairs, retain_pairs
from muwa.methods.razor import Cut, both, drift, fused, unlearn
from muwa.types.edit import Edit
from muwa.types.search import Layer, Part

RECIPE = Recipe("cosine", "contrastive", 4, 0)
CUT = Cut("head", 0.5, 0.5, 2.0, 0.5, 2, 0.05, 3)


def test_the_direction_worked_by_hand():
    """In layer a: 2 (1, 0) - (0, 1) - 0.5 (1, 0) = (1.5, -1), made as long as the weights (3, 4). b is not taken."""
    layer = Layer("a", "text", 1.0, (Part("a"),), (Part("a"),))
    weights = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}
    forget, retain, mismatch = (
        {"a": torch.tensor(x), "b": torch.ones(1)} for x in ([5.0, 0.0], [0.0, 0.1], [7.0, 0.0])
    )
    got = fused([layer], weights, forget, retain, mismatch, CUT)
    assert set(got) == {"a"}
    torch.testing.assert_close(got["a"], torch.tensor([1.5, -1.0]) * 5 / 3.25**0.5)
    torch.testing.assert_close(
        fused([layer], weights, forget, retain, {}, CUT)["a"], torch.tensor([2.0, -1.0]) * 5**0.5
    )


def test_a_head_moves_and_what_lies_beside_it_does_not():
    weights = {"a": torch.ones(4, 2)}
    layer = Layer("a.head1", "text", 1.0, (Part("a", 0, 2, 2),), (Part("a", 0, 2, 2),))
    got = fused([layer], weights, {"a": torch.ones(4, 2)}, {"a": torch.zeros(4, 2)}, {}, CUT)["a"]
    assert got.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_nothing_has_drifted_at_first_and_then_it_is_the_naive_gradient():
    model, pairs = tiny.clip(), retain_pairs(tiny.task())
    assert max(g.abs().max() for g in drift(model, model, pairs, RECIPE).values()) < 1e-6
    delta = {
        "visual.proj": 0.1 * torch.randn(model.weights["visual.proj"].shape, generator=torch.Generator().manual_seed(0))
    }
    now = model.edited(Edit(delta, ()))
    got = drift(model, now, pairs, RECIPE)
    net, frozen = naive.network(now), naive.network(model)
    total = 0
    for batch in naive.batches(10, 4, 0):
        some = pairs.select(batch)
        pixels, tokens = tiny.pixels(some.images), tiny.tokenize(list(some.captions))
        first, then = (
            one.encode_image(pixels, normalize=True) @ one.encode_text(tokens, normalize=True).T
            for one in (frozen, net)
        )
        total = total + len(batch) / 10 * ((then - first.detach()) ** 2).mean()
    total.backward()
    tiny.same_gradients(
        got, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in net.named_parameters()}, 1e-3
    )


def test_a_small_step_raises_the_forget_loss_and_lowers_the_retain_loss(tmp_path):
    model, task = tiny.clip(), tiny.task()
    forget, retain, n = both(model, task, RECIPE, Store(tmp_path), False)
    assert n == 16
    direction = fused(model.layers("head"), model.weights, forget, retain, {}, CUT)
    assert sum((direction[name] * forget[name]).sum() for name in direction) > 0
    assert sum((direction[name] * retain[name]).sum() for name in direction) < 0


def test_the_edit_moves_the_chosen_heads_by_the_chosen_share(tmp_path):
    model, task = tiny.clip(), tiny.task()
    edit = unlearn(model, task, store=Store(tmp_path), batch_size=4, rule="first", threshold=1.0, max_evals=2, rounds=1)
    (search,) = edit.searches
    row = search.trace[search.chosen]
    assert row.layer == "round 1, 1 layers and heads"
    assert len(edit.deltas) <= 2  # one head is rows of one tensor and columns of another
    moved = {name: delta != 0 for name, delta in edit.deltas.items()}
    size = sum(delta.square().sum() for delta in edit.deltas.values()) ** 0.5
    own = sum(model.weights[name][some].square().sum() for name, some in moved.items()) ** 0.5
    assert (size / own).item() == pytest.approx(row.step, rel=1e-3)
    assert len(forget_pairs(task)) + len(retain_pairs(task)) == edit.samples


def test_rounds_add_one_each_until_it_forgets_or_they_are_spent(tmp_path):
    settings = {"batch_size": 4, "threshold": 1.0, "max_evals": 1, "first_step": 1e-6, "rule": "first"}
    edit = unlearn(tiny.clip(1), known(tiny.clip(1)), store=Store(tmp_path), rounds=3, **settings)
    layers = [row.layer for row in edit.searches[0].trace]
    assert layers == [f"round {i}, {i} layers and heads" for i in (1, 2, 3)]
    assert edit.samples == 3 * 16 + 2 * 10  # the mismatch from the second round on
    sizes = [row.relative_norm for row in edit.searches[0].trace]
    assert sizes[0] > 0


def known(model):
    """The task of a name whose probe picture the random model gives it among its first five."""
    task = tiny.task()
    for label in range(8):
        name = tiny.NAMES[label]
        mentions = tuple(i for i, caption in enumerate(task.retain.captions) if name in caption)
        one = replace(task, names=(name,), forget={name: tiny.pairs(6, names=(name,))}, mentions=mentions,
                      probe=replace(task.probe, forget=tiny.pictures([label])))  # fmt: skip
        if len(mentions) == 2 and EditEvaluator(model, one.probe, None, target=0.0, criterion="top5").before().forget_top5 == 1:
            return one
    raise AssertionError("the random model knows nobody")


@pytest.mark.gpu
def test_weights_on_a_gpu_and_gradients_on_the_cpu_meet():
    """`accumulate` gives gradients on the CPU, wherever the model is."""
    layer = Layer("a", "text", 1.0, (Part("a"),), (Part("a"),))
    weights = {"a": torch.tensor([3.0, 4.0], device="cuda")}
    got = fused([layer], weights, {"a": torch.tensor([5.0, 0.0])}, {"a": torch.tensor([0.0, 0.1])}, {}, CUT)["a"]
    torch.testing.assert_close(got.cpu(), torch.tensor([2.0, -1.0]) * 5**0.5)

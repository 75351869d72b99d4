from dataclasses import replace

import naive
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.base import Recipe
from muwa.methods._edits import forget_pairs, retain_pairs
from muwa.methods._evaluator import EditEvaluator
from muwa.methods.base import make_edit
from muwa.methods.razor import RoundGradients, fused, mismatch_gradient, round_gradients
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.search import Layer, Part

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")
RAZOR = part("method=razor", forget_weight=2.0, mismatch_weight=0.5, batch_size=4)


def edit_by(model, task, run=None, **settings):
    return make_edit(replace(RAZOR, **settings), model, task, run or Run())


def test_the_direction_worked_by_hand():
    """In layer a: 2 (1, 0) - (0, 1) - 0.5 (1, 0) = (1.5, -1), made as long as the weights (3, 4). b is not taken."""
    layer = Layer("a", "text", 1.0, (Part("a"),), (Part("a"),))
    weights = {"a": torch.tensor([3.0, 4.0]), "b": torch.ones(1)}
    forget, retain, mismatch = (
        {"a": torch.tensor(x), "b": torch.ones(1)} for x in ([5.0, 0.0], [0.0, 0.1], [7.0, 0.0])
    )
    got = fused([layer], weights, RoundGradients(forget, retain, mismatch, 0), RAZOR)
    assert set(got) == {"a"}
    torch.testing.assert_close(got["a"], torch.tensor([1.5, -1.0]) * 5 / 3.25**0.5)
    torch.testing.assert_close(
        fused([layer], weights, RoundGradients(forget, retain, {}, 0), RAZOR)["a"],
        torch.tensor([2.0, -1.0]) * 5**0.5,
    )


def test_a_head_moves_and_what_lies_beside_it_does_not():
    weights = {"a": torch.ones(4, 2)}
    layer = Layer("a.head1", "text", 1.0, (Part("a", 0, 2, 2),), (Part("a", 0, 2, 2),))
    gradients = RoundGradients({"a": torch.ones(4, 2)}, {"a": torch.zeros(4, 2)}, {}, 0)
    got = fused([layer], weights, gradients, RAZOR)["a"]
    assert got.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_nothing_has_drifted_at_first_and_then_it_is_the_naive_gradient():
    model, pairs = tiny.clip(), retain_pairs(tiny.task())
    assert max(g.abs().max() for g in mismatch_gradient(model, model, pairs, RECIPE, Run()).values()) < 1e-6
    delta = {
        "visual.proj": 0.1
        * torch.randn(model.weights["visual.proj"].shape, generator=torch.Generator().manual_seed(0))
    }
    now = model.edited(Edit(delta, ()))
    got = mismatch_gradient(model, now, pairs, RECIPE, Run())
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


def test_a_small_step_raises_the_forget_loss_and_lowers_the_retain_loss():
    model, task = tiny.clip(), tiny.task()
    gradients = round_gradients(model, model, task, RAZOR, Run())
    assert (gradients.samples, gradients.mismatch) == (16, {})
    direction = fused(model.layers("head"), model.weights, gradients, RAZOR)
    assert sum((direction[name] * gradients.forget[name]).sum() for name in direction) > 0
    assert sum((direction[name] * gradients.retain[name]).sum() for name in direction) < 0


def test_the_forget_gradient_of_several_names_is_the_mean_over_all_their_pairs():
    two = replace(
        tiny.task(),
        names=tiny.NAMES[:2],
        forget={
            tiny.NAMES[0]: tiny.pairs(6, names=tiny.NAMES[:1]),
            tiny.NAMES[1]: tiny.pairs(2, names=tiny.NAMES[1:2]),
        },
    )
    model = tiny.clip()
    got = round_gradients(model, model, two, RAZOR, Run())
    one, other = (RAZOR.gradients(model, two, name, RAZOR.recipe, Run())[""].forget for name in two.names)
    assert got.samples == 6 + 2 + 10
    tiny.same_gradients(dict(got.forget), {name: (6 * one[name] + 2 * other[name]) / 8 for name in one})


def test_the_edit_moves_the_chosen_heads_by_the_chosen_fraction():
    model, task = tiny.clip(), tiny.task()
    edit = edit_by(model, task, rule="first", threshold=1.0, max_evals=2, rounds=1)
    (search,) = edit.searches
    row = search.trace[search.chosen]
    assert row.candidate.name == "round 1, 1 layers and heads"
    assert len(edit.deltas) <= 2  # one head is rows of one tensor and columns of another
    moved = {name: delta != 0 for name, delta in edit.deltas.items()}
    size = sum(delta.square().sum() for delta in edit.deltas.values()) ** 0.5
    own = sum(model.weights[name][some].square().sum() for name, some in moved.items()) ** 0.5
    assert (size / own).item() == pytest.approx(row.step, rel=1e-3)
    assert len(forget_pairs(task)) + len(retain_pairs(task)) == edit.samples


def test_rounds_add_one_each_until_it_forgets_or_they_are_spent():
    settings = {"threshold": 1.0, "max_evals": 1, "first_step": 1e-6, "rule": "first"}
    edit = edit_by(tiny.clip(1), known(tiny.clip(1)), rounds=3, **settings)
    layers = [row.candidate.name for row in edit.searches[0].trace]
    assert layers == [f"round {i}, {i} layers and heads" for i in (1, 2, 3)]
    assert edit.samples == 3 * 16 + 2 * 10  # the mismatch from the second round on
    sizes = [row.relative_norm for row in edit.searches[0].trace]
    assert sizes[0] > 0


def evaluated(model, probe):
    return EditEvaluator(Features(model, Run()), probe, target=0.0, criterion="top5", step_unit="").before()


def known(model):
    """The task of a name that is among the random model's first five guesses for its probe image."""
    task = tiny.task()
    for label in range(8):
        name = tiny.NAMES[label]
        mentions = tuple(i for i, caption in enumerate(task.retain.captions) if name in caption)
        one = replace(task, names=(name,), forget={name: tiny.pairs(6, names=(name,))}, mentions=mentions,
                      probe=replace(task.probe, forget=tiny.pictures([label])))  # fmt: skip
        if len(mentions) == 2 and evaluated(model, one.probe).forgotten == 1:
            return one
    raise AssertionError("the random model knows nobody")


@pytest.mark.gpu
def test_weights_on_a_gpu_and_gradients_on_the_cpu_meet():
    """`accumulate` gives gradients on the CPU, wherever the model is."""
    layer = Layer("a", "text", 1.0, (Part("a"),), (Part("a"),))
    weights = {"a": torch.tensor([3.0, 4.0], device="cuda")}
    gradients = RoundGradients({"a": torch.tensor([5.0, 0.0])}, {"a": torch.tensor([0.0, 0.1])}, {}, 0)
    got = fused([layer], weights, gradients, RAZOR)["a"]
    torch.testing.assert_close(got.cpu(), torch.tensor([2.0, -1.0]) * 5**0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"granularity": "block"}, "method.granularity: got 'block', want one of tensor"),
        ({"alpha": 1.5}, r"method.alpha: got 1.5, want a number in \[0, 1\]"),
        ({"threshold": -1}, r"method.threshold: got -1, want a number in \[0, 1\]"),
        ({"rounds": 0}, "method.rounds: got 0, want at least 1"),
        ({"max_evals": 0}, "method.max_evals: got 0, want at least 1"),
        ({"mismatch_weight": -1}, "method.mismatch_weight: got -1, want at least 0"),
        ({"forget_weight": 0}, "method.forget_weight: got 0, want a number above 0"),
        ({"first_step": 0}, "method.first_step: got 0, want a number above 0"),
        ({"forget_loss": "hinge"}, "got 'hinge', want one of cosine, contrastive"),
        ({"target": 1}, r"method.target: got 1, want a forget accuracy in \[0, 1\)"),
    ],
)
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=message):
        edit_by(tiny.clip(), tiny.task(), Run(store), **settings)
    assert store.events == {}

import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.layer_search.steps import step_deltas
from muwa.methods.base import make_edit
from muwa.methods.slug_layers import distinct, joint_deltas, ordered
from muwa.models.clip.layers import layers as candidates
from muwa.run import Run
from muwa.types.search import LayerScore


def method(**settings):
    return part("method=slug_layers", **{"batch_size": 4, "max_evals": 4, **settings})


def score(importance, alignment, tower="vision", norm=1.0):
    return LayerScore(importance, alignment, alignment, 1.0, norm, 1.0, tower)


SCORES = {
    "a": score(3, 0.5),
    "b": score(2, 0.1),
    "c": score(1, 0.3),
    "d": score(9, 0.0, norm=0.0),
    "e": score(5, 0.9, "text"),
}


@pytest.mark.parametrize(
    ("pick", "k", "want"),
    [
        ("importance", 2, ["e", "a"]),
        ("alignment", 2, ["b", "c"]),
        ("all", None, ["e", "a", "b", "c"]),
        ("front", None, ["e", "a", "b"]),
        ("front", 1, ["e"]),
    ],
)
def test_layers_are_picked_by_hand(pick, k, want):
    """c is dominated by b in its tower; d has no forget gradient, so no step moves it."""
    scores = {name: row for name, row in SCORES.items() if name != "d"} if pick == "front" else SCORES
    assert ordered(scores, pick, 0)[:k] == want


def test_a_random_pick_goes_by_its_seed():
    found = {tuple(ordered(SCORES, "random", seed)[:2]) for seed in range(30)}
    assert ordered(SCORES, "random", 3) == ordered(SCORES, "random", 3)
    assert len(found) > 6
    assert not any("d" in pair for pair in found)


def test_q_k_and_v_that_move_together_are_picked_once():
    """Of a Hugging Face block each of q, k and v is a candidate, and moves all three; so are fc1 and fc2."""
    block = "vision_model.encoder.layers.0"
    names = [*(f"{block}.self_attn.{letter}_proj.weight" for letter in "qkv"), f"{block}.mlp.fc1.weight",
             f"{block}.mlp.fc2.weight", f"{block}.self_attn.out_proj.weight"]  # fmt: skip
    layers = candidates({name: torch.ones(4, 4) for name in names}, {}, "tensor")
    q, k, v, fc1, fc2, out = (layer.name for layer in layers)
    assert distinct([v, fc2, q, out, k, fc1], layers) == [v, fc2, out]


def test_each_layer_moves_by_the_same_fraction_of_its_norm():
    model, task = tiny.clip(), tiny.task()
    found = method().gradients(model, task, tiny.NAMES[0], method().recipe, Run())[""]
    names = ("visual.proj", "transformer.resblocks.0.mlp.c_fc.weight")
    layers = [layer for layer in model.layers("tensor") if layer.name in names]
    deltas = joint_deltas(model, found, layers, 0.3)
    assert set(deltas) == set(names)
    for layer in layers:
        theta, g = model.weights[layer.name], found.forget[layer.name]
        torch.testing.assert_close(deltas[layer.name], 0.3 * theta.norm() / g.norm() * g)
        assert deltas[layer.name].norm() / theta.norm() == pytest.approx(0.3, rel=1e-5)
        alone = step_deltas(model, found, layer, 0.3 * (theta.norm() / g.norm()).item())
        torch.testing.assert_close(deltas[layer.name], alone[layer.name])


@pytest.mark.parametrize(("pick", "k"), [("front", None), ("random", 2), ("all", 3)])
def test_the_trace_is_of_all_layers_together_and_the_edit_is_the_chosen_row(pick, k):
    model, task, events = tiny.clip(), tiny.task(), []
    run = Run(log=lambda event, row: events.append(event))
    edit = make_edit(method(pick=pick, k=k, rule="first"), model, task, run)
    (search,) = edit.searches
    assert [row.step for row in search.trace][0] == 0.1
    assert len(search.trace) == events.count("evaluation") == 4
    row = search.trace[search.chosen]
    names = tuple(layer.name for layer in model.layers("tensor") if layer.name in search.front)
    assert (row.candidate.names, row.candidate.name) == (names, " + ".join(names))
    assert set(edit.deltas) == set(names)
    assert edit.moves[0].relative_norm == pytest.approx(
        row.step, rel=0.2
    )  # each tensor's own fraction is the step
    assert edit.samples == 6 + 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pick": "best"}, "method.pick: got 'best', want one of front"),
        ({"k": 0}, "method.k: got 0"),
        ({"rule": "deepest"}, "method.rule: got 'deepest'"),
        ({"first_step": 0}, "method.first_step: got 0"),
        ({"granularity": "block"}, "method.granularity: got 'block', want one of tensor"),
        ({"max_evals": 0}, "method.max_evals: got 0, want at least 1"),
    ],
)
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_edit(method(**settings), tiny.clip(), tiny.task(), Run(Store(tmp_path)))
    assert not list(tmp_path.rglob("value.json"))

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.gradients.mean import Recipe, gradients
from muwa.layer_search.steps import step_deltas
from muwa.methods import slug_layers
from muwa.methods.slug_layers import apart, joint_deltas, picks
from muwa.models.clip.layers import layers as candidates
from muwa.types.search import LayerScore

FEW = {"batch_size": 4, "max_evals": 4}


def score(importance, alignment, tower="vision", norm=1.0):
    return LayerScore(importance, alignment, alignment, 1.0, norm, 1.0, tower)


SCORES = {
    "a": score(3, 0.5),
    "b": score(2, 0.1),
    "c": score(1, 0.3),
    "d": score(9, 0.0, norm=0.0),
    "e": score(5, 0.9, "text"),
}


@pytest.mark.parametrize(("pick", "k", "want"), [
    ("importance", 2, ["e", "a"]), ("alignment", 2, ["b", "c"]), ("all", None, ["e", "a", "b", "c"]),
    ("front", None, ["e", "a", "b"]), ("front", 1, ["e"]),
])  # fmt: skip
def test_layers_are_picked_by_hand(pick, k, want):
    """c is dominated by b in its tower; d has no forget gradient, so no step moves it."""
    scores = {name: row for name, row in SCORES.items() if name != "d"} if pick == "front" else SCORES
    assert picks(scores, pick, 0)[:k] == want


def test_a_random_pick_goes_by_its_seed():
    found = {tuple(picks(SCORES, "random", seed)[:2]) for seed in range(30)}
    assert picks(SCORES, "random", 3) == picks(SCORES, "random", 3)
    assert len(found) > 6
    assert not any("d" in pair for pair in found)


def test_q_k_and_v_that_move_together_are_picked_once():
    """Of a Hugging Face block each of q, k and v is a candidate, and moves all three; so are fc1 and fc2."""
    block = "vision_model.encoder.layers.0"
    names = [*(f"{block}.self_attn.{letter}_proj.weight" for letter in "qkv"), f"{block}.mlp.fc1.weight",
             f"{block}.mlp.fc2.weight", f"{block}.self_attn.out_proj.weight"]  # fmt: skip
    layers = candidates({name: torch.ones(4, 4) for name in names}, {}, "tensor")
    q, k, v, fc1, fc2, out = (layer.name for layer in layers)
    assert apart([v, fc2, q, out, k, fc1], layers) == [v, fc2, out]


def test_each_layer_moves_by_the_same_share_of_its_own_norm(tmp_path):
    model, task = tiny.clip(), tiny.task()
    found = gradients(model, task, tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=Store(tmp_path))
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
def test_the_trace_is_of_all_layers_together_and_the_edit_is_the_chosen_row(tmp_path, pick, k):
    model, task, heard = tiny.clip(), tiny.task(), []
    edit = slug_layers.unlearn(
        model,
        task,
        store=Store(tmp_path),
        pick=pick,
        k=k,
        rule="first",
        log=lambda event, row: heard.append(event),
        **FEW,
    )
    (search,) = edit.searches
    assert [row.step for row in search.trace][0] == 0.1
    assert len(search.trace) == heard.count("evaluation") == 4
    row = search.trace[search.chosen]
    assert row.layer.split(" + ") == [layer.name for layer in model.layers("tensor") if layer.name in search.front]
    assert set(edit.deltas) == set(row.layer.split(" + "))
    assert edit.moves[0].relative_norm == pytest.approx(row.step, rel=0.2)  # each tensor's own share is the step
    assert edit.samples == 6 + 10


@pytest.mark.parametrize(("settings", "message"), [
    ({"pick": "best"}, "method.pick: got 'best', want one of front"), ({"k": 0}, "method.k: got 0"),
    ({"rule": "deepest"}, "method.rule: got 'deepest'"), ({"first_step": 0}, "method.first_step: got 0"),
])  # fmt: skip
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        slug_layers.unlearn(tiny.clip(), tiny.task(), store=Store(tmp_path), **settings)
    assert not list(tmp_path.rglob("value.json"))

from dataclasses import replace
from functools import partial

import pytest
import tiny
import tiny_vlm
import torch

from muwa.cache.store import Store
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import Recipe, gradients
from muwa.layer_search.answering import answering
from muwa.layer_search.bisection import pareto_bisect
from muwa.layer_search.evaluators.zero_shot import Judge
from muwa.layer_search.grid import fixed
from muwa.methods.slug import norms, unlearn
from muwa.models.clip.embeddings import Features
from muwa.types.data import Split

SEARCH = partial(pareto_bisect, max_evals=3, rule="paper")
SETTINGS = {"layer_search": SEARCH, "batch_size": 4}


def same(a, b):
    assert a.moves == b.moves
    assert a.searches == b.searches
    assert set(a.deltas) == set(b.deltas)
    assert all(torch.equal(a.deltas[name], b.deltas[name]) for name in a.deltas)


def test_the_edit_is_the_chosen_step_along_the_forget_gradient(tmp_path):
    model, task = tiny.clip(), tiny.task()
    edit = unlearn(model, task, store=Store(tmp_path), **SETTINGS)
    found = gradients(model, task, tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=Store(tmp_path))
    (move,) = edit.moves
    chosen = edit.searches[0].trace[edit.searches[0].chosen]
    assert (move.layer, move.step) == (chosen.layer, chosen.step)
    assert list(edit.deltas) == [move.layer]
    torch.testing.assert_close(edit.deltas[move.layer], move.step * found.forget[move.layer])


def test_a_second_time_everything_is_read_back_and_told_alike(tmp_path):
    told = [], []
    first, second = Store(tmp_path), Store(tmp_path)
    edits = [
        unlearn(
            tiny.clip(),
            tiny.task(),
            store=store,
            log=lambda event, row, rows=rows: rows.append((event, row)),
            **SETTINGS,
        )
        for store, rows in ((first, told[0]), (second, told[1]))
    ]
    same(*edits)
    assert set(second.events.values()) == {"hit"}
    assert [event for event, _ in told[0]] == [event for event, _ in told[1]]
    assert told[0] == told[1]


def test_several_names_each_get_a_layer_and_a_step_on_the_original_model(tmp_path):
    task = tiny.task()
    names = tiny.NAMES[:2]
    split = [Split(tiny.pictures([0, 0, 1, 1], start=start), tiny.pictures([2, 3, 4], start=start + 10),
                   tiny.pictures([5, 6], start=start + 20)) for start in (50, 70)]  # fmt: skip
    both = replace(task, names=names, forget={name: tiny.pairs(6, names=(name,)) for name in names},
                   mentions=(0, 1, 8, 9), probe=split[0], eval=split[1])  # fmt: skip
    store = Store(tmp_path)
    edit = unlearn(tiny.clip(), both, store=store, **SETTINGS)
    alone = [unlearn(tiny.clip(), both.only(name), store=store, **SETTINGS) for name in names]
    assert edit.moves == alone[0].moves + alone[1].moves
    for name, delta in edit.deltas.items():
        want = sum(one.deltas[name] for one in alone if name in one.deltas)
        assert torch.equal(delta, want)


def test_gradients_from_a_file_give_the_same_edit(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path / "c")
    want = unlearn(model, task, store=store, **SETTINGS)
    found = gradients(model, task, tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=store)
    write_gradients(tmp_path / "g", found)
    fresh = Store(tmp_path / "other")
    same(unlearn(model, task, store=fresh, gradient_file=tmp_path / "g", **SETTINGS), want)
    assert set(fresh.events) == {"search", "pixels"}
    with pytest.raises(ValueError, match="seed: file has 0, this run has 1"):
        unlearn(model, task, store=fresh, gradient_file=tmp_path / "g", seed=1, **SETTINGS)


def test_norms_are_told_for_every_parameter(tmp_path):
    found = gradients(
        tiny.clip(), tiny.task(), tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=Store(tmp_path)
    )
    told = norms(found)
    assert set(told) == set(tiny.clip().weights)
    assert told["visual.proj"]["forget"] == pytest.approx(found.forget["visual.proj"].square().sum().sqrt().item())


def test_wrong_settings_stop_before_any_gradient(tmp_path):
    store = Store(tmp_path)
    for settings, message in (
        ({"layer_search": partial(pareto_bisect, rule="best")}, "layer_search.rule"),
        ({"forget_loss": "l2"}, "loss: got 'l2', want one of cosine, contrastive"),
        ({"retain_loss": "l2"}, "loss: got 'l2'"),
        ({"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            unlearn(tiny.clip(), tiny.task(), store=store, **settings)
    assert store.events == {}


def test_another_name_or_setting_is_another_search_on_the_same_retain_gradient(tmp_path):
    task = tiny.task()
    step = partial(fixed, layer="visual.proj", relative_step=0.1)
    unlearn(tiny.clip(), task, store=Store(tmp_path), layer_search=step, batch_size=4)
    other = Store(tmp_path)
    edit = unlearn(tiny.clip(), task, store=other, layer_search=partial(step, relative_step=0.2), batch_size=4)
    assert other.events.pop("search") == "miss"
    assert set(other.events.values()) == {"hit"}
    assert edit.moves[0].relative_norm == pytest.approx(0.2, rel=1e-4)
    bo = replace(task, names=tiny.NAMES[1:2], forget={"Bo Hill": tiny.pairs(6, names=tiny.NAMES[1:2])}, mentions=(1, 9),
                 probe=replace(task.probe, forget=tiny.pictures([1, 1])))  # fmt: skip
    second = Store(tmp_path)
    edit = unlearn(tiny.clip(), bo, store=second, layer_search=step, batch_size=4)
    assert [move.concept for move in edit.moves] == ["Bo Hill"]
    assert second.events["search"] == "miss"
    assert "hit" in second.events.values()  # the retain gradient of all pairs


def test_nothing_feasible_is_an_edit_without_deltas_and_the_search_is_kept(tmp_path):
    never = partial(fixed, layer="visual.proj", relative_step=1e-6, rule="constrained")
    known = next(label for label in range(8) if recognised(label))
    name = tiny.NAMES[known]
    probe = Split(tiny.pictures([known] * 3), tiny.pictures([(known + 1) % 8]), tiny.pictures([(known + 2) % 8]))
    task = replace(tiny.task(), names=(name,), forget={name: tiny.pairs(6, names=(name,))}, probe=probe, eval=probe)
    edit = unlearn(tiny.clip(), task, store=Store(tmp_path), layer_search=never, batch_size=4)
    assert (edit.deltas, edit.moves) == ({}, ())
    assert len(edit.searches[0].trace) == 1
    assert "No feasible step" in edit.searches[0].why


def recognised(label):
    """Whether the random model has one of three pictures of a name among its first five."""
    pictures = tiny.pictures([label] * 3)
    return Judge(tiny.clip(), Split(pictures, pictures, pictures), Features(tiny.clip()), [])()["forget_top5"] > 0


def test_a_file_of_one_names_gradients_is_not_taken_for_two(tmp_path):
    model, store = tiny.clip(), Store(tmp_path / "c")
    names = tiny.NAMES[:2]
    task = replace(tiny.task(), names=names, forget={name: tiny.pairs(6, names=(name,)) for name in names},
                   probe=replace(tiny.split(), forget=tiny.pictures([0, 1]), retain=tiny.pictures([2, 3])))  # fmt: skip
    recipe = Recipe("cosine", "contrastive", 4, 0)
    write_gradients(tmp_path / "g", gradients(model, task, names[0], recipe, store=store))
    with pytest.raises(ValueError, match="computed from something else"):
        unlearn(model, task, store=store, gradient_file=tmp_path / "g", **SETTINGS)


def test_the_model_is_left_as_it_was(tmp_path):
    model = tiny.clip()
    step = partial(fixed, layer="visual.proj", relative_step=0.5)
    assert unlearn(model, tiny.task(), store=Store(tmp_path), layer_search=step, batch_size=4).deltas
    base = tiny.clip().weights
    assert all(torch.equal(weight, base[name]) for name, weight in model.weights.items())


ASKING = partial(answering, wordings=tiny_vlm.WORDINGS, start="ratio", forget_at_most=0.5, retain_pictures=9, max_evals=2,
                 candidates=1, rule="paper")  # fmt: skip


def test_a_vision_language_model_is_edited_in_its_tower_by_either_gradient(tmp_path):
    model, task = tiny_vlm.vlm(), tiny.task()
    edits = {}
    for gradient in ("clip", "answer"):
        store = Store(tmp_path / gradient)
        edits[gradient] = unlearn(model, task, store=store, layer_search=ASKING, batch_size=4, gradient=gradient)
        (move,) = edits[gradient].moves
        assert move.tower == "vision"
        assert move.layer in {layer.name for layer in model.clip.layers("tensor")}
        assert model.edited(edits[gradient]).changes
    ways = [edits[way].searches[0].scores for way in ("clip", "answer")]
    assert ways[0].keys() == ways[1].keys()
    assert ways[0] != ways[1]


def test_a_gradient_or_a_search_that_the_model_has_not_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=r"method\.gradient: got 'text', want clip or answer"):
        unlearn(tiny.clip(), tiny.task(), store=store, gradient="text", **SETTINGS)
    with pytest.raises(ValueError, match="only a vision-language model"):
        unlearn(tiny.clip(), tiny.task(), store=store, gradient="answer", **SETTINGS)
    with pytest.raises(ValueError, match="wants layer_search=answering"):
        unlearn(tiny_vlm.vlm(), tiny.task(), store=store, **SETTINGS)

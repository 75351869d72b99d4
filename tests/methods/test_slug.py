from dataclasses import replace
from functools import partial

import pytest
import tiny
import torch

from muwa.cache import Store
from muwa.gradients import Recipe, gradients, write_gradients
from muwa.layer_search.bisect import pareto_bisect
from muwa.methods.slug import norms, unlearn
from muwa.types import Split

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
    assert set(fresh.events) == {"search"}
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

from functools import partial

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.gradients.mean import gradient_sum
from muwa.layer_search.grid import fixed
from muwa.methods import slug_iterative
from muwa.methods.slug_iterative import walk

LAYER = "transformer.resblocks.0.mlp.c_fc.weight"


def layer(model):
    return next(layer for layer in model.layers("tensor") if layer.name == LAYER)


def gradient(model, pairs):
    return gradient_sum(model, pairs, loss="cosine", batch_size=4, seed=0)["sum"][LAYER]


def test_each_step_goes_along_the_gradient_where_the_model_is_now():
    model, task = tiny.clip(), tiny.task()
    pairs, start = task.forget[tiny.NAMES[0]], model.weights[LAYER]
    found = walk(model, pairs, layer(model), task.probe, 0.1, 2, 9, 0.0, "top5", "cosine", 4, 0)
    assert len(found["trace"]) == 2
    now = start.clone()
    for row in found["trace"]:
        g = gradient(model.with_weights({LAYER: now}), pairs)
        now = now + 0.1 * start.norm() * g / g.norm()
        assert row.relative_norm == pytest.approx(((now - start).norm() / start.norm()).item(), rel=1e-4)
    kept = {index: deltas[LAYER] for index, deltas in found["kept"].items()}
    if "1" in kept:
        torch.testing.assert_close(kept["1"], now - start, rtol=1e-4, atol=1e-6)
    assert found["trace"][1].forget_cosine < found["trace"][0].forget_cosine < found["before"].forget_cosine


def test_it_ends_some_rounds_after_it_forgot():
    model, task = tiny.clip(), tiny.task()
    pairs = task.forget[tiny.NAMES[0]]
    found = walk(model, pairs, layer(model), task.probe, 0.5, 30, 2, 0.0, "top1", "cosine", 4, 0)
    first = next(i for i, row in enumerate(found["trace"]) if row.feasible)
    assert len(found["trace"]) == first + 3
    assert set(found["kept"]) <= {str(i) for i in range(first, first + 3)}


def test_the_layer_is_the_one_that_slugs_search_chose(tmp_path):
    search = partial(fixed, layer=LAYER, relative_step=0.1)
    edit = slug_iterative.unlearn(tiny.clip(), tiny.task(), store=Store(tmp_path), layer_search=search, step=0.2, rounds=3,
                                  rule="first", batch_size=4)  # fmt: skip
    assert set(edit.deltas) == {LAYER}
    (search,) = edit.searches
    assert {row.layer for row in search.trace} == {LAYER}
    assert edit.samples == 6 + 10 + 6 * len(search.trace)


@pytest.mark.parametrize(("settings", "message"), [
    ({"step": 0}, "method.step: got 0"), ({"rounds": 0}, "method.rounds: got 0"), ({"patience": -1}, "method.patience: got -1"),
])  # fmt: skip
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        slug_iterative.unlearn(tiny.clip(), tiny.task(), store=Store(tmp_path), **settings)
    assert not list(tmp_path.rglob("value.json"))

import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.base import BatchLoss
from muwa.gradients.mean import gradient_sum
from muwa.methods.base import make_edit
from muwa.methods.slug_iterative import Steps, take_steps
from muwa.run import Run

COSINE = BatchLoss("cosine", 4, 0, "fp32")
LAYER = "transformer.resblocks.0.mlp.c_fc.weight"


def layer(model):
    return next(layer for layer in model.layers("tensor") if layer.name == LAYER)


def gradient(model, pairs):
    return gradient_sum(model, pairs, COSINE, run=Run())["sum"][LAYER]


def test_each_step_goes_along_the_gradient_where_the_model_is_now():
    model, task = tiny.clip(), tiny.task()
    pairs, start = task.forget[tiny.NAMES[0]], model.weights[LAYER]
    found = take_steps(
        model, pairs, layer(model), task.probe, Steps(0.1, 2, 9, 0.0, "top5"), COSINE, run=Run()
    )
    assert len(found["trace"]) == 2
    now = start.clone()
    for row in found["trace"]:
        g = gradient(model.with_weights({LAYER: now}), pairs)
        now = now + 0.1 * start.norm() * g / g.norm()
        assert row.relative_norm == pytest.approx(((now - start).norm() / start.norm()).item(), rel=1e-4)
    kept = {index: deltas[LAYER] for index, deltas in found["deltas"].items()}
    if "1" in kept:
        torch.testing.assert_close(kept["1"], now - start, rtol=1e-4, atol=1e-6)
    assert found["trace"][1].closeness < found["trace"][0].closeness < found["before"].closeness


def test_it_ends_some_rounds_after_it_forgot():
    model, task = tiny.clip(), tiny.task()
    pairs = task.forget[tiny.NAMES[0]]
    found = take_steps(
        model, pairs, layer(model), task.probe, Steps(0.5, 30, 2, 0.0, "top1"), COSINE, run=Run()
    )
    first = next(i for i, row in enumerate(found["trace"]) if row.feasible)
    assert len(found["trace"]) == first + 3
    assert set(found["deltas"]) <= {str(i) for i in range(first, first + 3)}


def test_the_layer_is_the_one_that_slugs_search_chose():
    fixed = part("layer_search=fixed", layer=LAYER, relative_step=0.1)
    method = part("method=slug_iterative", layer_search=fixed, step=0.2, rounds=3, rule="first", batch_size=4)
    edit = make_edit(method, tiny.clip(), tiny.task(), Run())
    assert set(edit.deltas) == {LAYER}
    (search,) = edit.searches
    assert {row.candidate.name for row in search.trace} == {LAYER}
    assert edit.samples == 6 + 10 + 6 * len(search.trace)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 0}, "method.step: got 0, want a number above 0"),
        ({"rounds": 0}, "method.rounds: got 0, want at least 1"),
        ({"patience": -1}, "method.patience: got -1, want at least 0"),
        (
            {"layer_search": part("layer_search=grid", towers=[])},
            r"layer_search.towers: got \[\], want some of vision, text",
        ),
    ],
)
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_edit(part("method=slug_iterative", **settings), tiny.clip(), tiny.task(), Run(Store(tmp_path)))
    assert not list(tmp_path.rglob("value.json"))

import naive
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.methods._edits import forget_pairs
from muwa.methods.task_arithmetic import SCALES
from muwa.run import Run

SETTINGS = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 4, "rule": "first"}


def test_the_edit_is_the_negated_vector_and_linear_in_its_scale(tmp_path):
    model, task, store = tiny.clip(), tiny.task(), Store(tmp_path)
    methods = [part("method=task_arithmetic", scales=[scale], **SETTINGS) for scale in (0.5, 1.0)]
    one, two = (method(model, task, Run(store)) for method in methods)
    for name, delta in one.deltas.items():
        assert torch.equal(2 * delta, two.deltas[name])
    want = naive.train(model, [(forget_pairs(task), "cosine", 1)], epochs=2, batch_size=4, learning_rate=1e-3)
    assert naive.apart({name: -delta for name, delta in two.deltas.items()}, want) < 0.01
    assert store.events["task_vector"] == "partial"  # learned once
    assert (two.samples, two.moves[0].step) == (12, 1.0)
    assert two.moves[0].relative_norm == pytest.approx(2 * one.moves[0].relative_norm)


def test_going_farther_forgets_more(tmp_path):
    method = part("method=task_arithmetic", scales=[0.25, 0.5, 1.0], **{**SETTINGS, "learning_rate": 1e-4})
    edit = method(tiny.clip(), tiny.task(), Run(Store(tmp_path)))
    (search,) = edit.searches
    cosines = [search.before.closeness, *(row.closeness for row in search.trace)]
    assert cosines == sorted(cosines, reverse=True)


def test_the_scales_are_the_papers():
    assert list(SCALES) == pytest.approx([0.05 * i for i in range(1, 21)])


def test_without_scales_the_papers_are_tried(tmp_path):
    method = part("method=task_arithmetic", **{**SETTINGS, "epochs": 1})
    (search,) = method(tiny.clip(), tiny.task(), Run(Store(tmp_path))).searches
    assert [(row.step, row.step_unit) for row in search.trace] == [(scale, "scale") for scale in SCALES]

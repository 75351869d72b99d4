"""muwa's search against the bench's plain one: the same steps, accuracies and choice on every layer that is one tensor."""

from dataclasses import replace

import pytest
import tiny

from bench.reference import Reference, bare_loop, choose
from bench.search import agrees
from muwa.cache.store import Store
from muwa.gradients.losses import contrastive
from muwa.gradients.mean import Recipe, gradient_sum, gradients, plan
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.steps import StepEvaluator
from muwa.types.data import Classes, Split


def probe():
    """Two pictures to forget, seven to keep, names with two prompts, other things with one."""
    names, things = (
        Classes(tiny.NAMES, ("a photo of {}", "{}.")),
        Classes(("cat", "dog", "pony", "horse", "ox"), ("a {}",)),
    )
    faces = [replace(tiny.pictures(labels), classes=names) for labels in ([0, 0, 1], [2, 3, 4, 5, 6, 7, 2])]
    return Split(*faces, replace(tiny.pictures([0, 1, 2, 1, 0]), classes=things))


@pytest.mark.parametrize(("batch", "every"), [(1, 5), (3, 1)])
def test_the_oracle_takes_the_same_steps_sees_the_same_rates_and_chooses_the_same(tmp_path, batch, every):
    model, split = tiny.clip(), probe()
    found = gradients(model, tiny.task(), tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=Store(tmp_path))
    reference = Reference(model, split, batch)
    for layer in model.layers("tensor")[::every]:
        trial = StepEvaluator(model, found, split, [layer], None, concept="", criterion="top5", target=0.0, log=lambda *_: None)
        steps = bisection(0.1 * trial.ratio(layer), 6)
        step = next(steps)
        while step is not None:
            step = next_step(steps, trial(layer, step).feasible)
        trace = reference.search(found.forget, [layer], 6)
        assert agrees(trial, trace), layer.name
        assert len(trial.trace) == 6


def test_the_oracle_notices_another_model(tmp_path):
    model, split = tiny.clip(), probe()
    found = gradients(model, tiny.task(), tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=Store(tmp_path))
    layer = next(layer for layer in model.layers("tensor") if layer.name == "visual.proj")
    trial = StepEvaluator(model, found, split, [layer], None, concept="", criterion="top5", target=0.0, log=lambda *_: None)
    (row,) = Reference(model, split, 3).search(found.forget, [layer], 1)
    trial(layer, row.step * 3)
    assert not agrees(trial, [row])
    assert choose([replace(row, forget_top5=0.5)], 1, 1) is None


@pytest.mark.parametrize("cut", [False, True])
def test_the_bare_loop_gives_the_same_gradient(cut):
    model, pairs = tiny.clip(), tiny.pairs(10)
    batches = [(tiny.pixels(some.images), tiny.tokenize(list(some.captions)))
               for some in (pairs.select(batch) for batch in plan(10, 4, 0))]  # fmt: skip
    want = bare_loop(model, batches, contrastive, cut=cut)
    got = gradient_sum(model, pairs, loss="contrastive", batch_size=4, seed=0)["sum"]
    tiny.same_gradients({name: got[name] for name in want}, want)
    assert not any(w.requires_grad for w in model.weights.values())

"""muwa's search against the bench's plain one: the same steps, accuracies and choice on every layer that is one tensor."""

from dataclasses import replace

import pytest
import tiny

from bench.reference import Reference, bare_loop, choose
from bench.search import ACCEPTANCE, agrees
from muwa.gradients.base import BatchLoss, Recipe
from muwa.gradients.losses import contrastive
from muwa.gradients.mean import gradient_sum, mean_gradients, shuffled_batches
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.evaluators.zero_shot import StepEvaluator
from muwa.models.clip.embeddings import Features
from muwa.run import Run
from muwa.types.data import Classes, Split


def probe():
    """Three images to forget, seven to keep, names with two prompts, other things with one."""
    names, things = (
        Classes(tiny.NAMES, ("a photo of {}", "{}.")),
        Classes(("cat", "dog", "pony", "horse", "ox"), ("a {}",)),
    )
    faces = [replace(tiny.pictures(labels), classes=names) for labels in ([0, 0, 1], [2, 3, 4, 5, 6, 7, 2])]
    return Split(*faces, replace(tiny.pictures([0, 1, 2, 1, 0]), classes=things))


@pytest.fixture(scope="module")
def gradients():
    recipe = Recipe("cosine", "contrastive", 4, 0, "fp32")
    return mean_gradients(tiny.clip(), tiny.task(), tiny.NAMES[0], recipe, Run())


def evaluator_of(model, gradients, split, layer):
    return StepEvaluator(Features(model, Run()), gradients, split, [layer], concept="", acceptance=ACCEPTANCE)


@pytest.mark.parametrize(("batch", "every"), [(1, 5), (3, 1)])
@pytest.mark.whole
def test_the_oracle_takes_the_same_steps_sees_the_same_rates_and_chooses_the_same(gradients, batch, every):
    model, split = tiny.clip(), probe()
    reference = Reference(model, split, batch)
    for layer in model.layers("tensor")[::every]:
        evaluator = evaluator_of(model, gradients, split, layer)
        steps = bisection(0.1 * evaluator.ratio(layer), 6)
        step = next(steps)
        while step is not None:
            step = next_step(steps, evaluator(layer, step).feasible)
        trace = reference.search(gradients.forget, [layer], 6)
        assert agrees(evaluator, trace, split), layer.name
        assert len(evaluator.trace) == 6


def test_the_oracle_notices_another_step(gradients):
    model, split = tiny.clip(), probe()
    layer = next(layer for layer in model.layers("tensor") if layer.name == "visual.proj")
    evaluator = evaluator_of(model, gradients, split, layer)
    (row,) = Reference(model, split, 3).search(gradients.forget, [layer], 1)
    evaluator(layer, row.step * 3)
    assert not agrees(evaluator, [row], split)
    assert choose([replace(row, rates=replace(row.rates, forget_top5=0.5))], 1, 1) is None


@pytest.mark.parametrize("cut", [False, True])
def test_the_bare_loop_gives_the_same_gradient(cut):
    model, pairs = tiny.clip(), tiny.pairs(10)
    some = [pairs.select(batch) for batch in shuffled_batches(10, 4, 0)]
    batches = [(tiny.pixels(batch.images), tiny.tokenize(list(batch.captions))) for batch in some]
    want = bare_loop(model, batches, contrastive, cut=cut)
    got = gradient_sum(model, pairs, BatchLoss("contrastive", 4, 0, "fp32"), run=Run())["sum"]
    tiny.same_gradients({name: got[name] for name in want}, want)
    assert not any(w.requires_grad for w in model.weights.values())

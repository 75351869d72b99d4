"""One more name after others: which people each task retains, and whose gradients are taken."""

import tiny

from bench.sequence import FromOriginal, Request
from muwa.gradients.base import Recipe
from muwa.gradients.mean import ClipGradients
from muwa.run import Run


def test_an_aware_task_retains_no_earlier_name():
    request = Request(tiny.clip(), tiny.clip(), tiny.NAMES[:2], tiny.task_of, Run())
    kept = {tiny.NAMES[label] for label in request.aware().probe.retain.labels}
    assert request.aware().names == request.alone().names == (tiny.NAMES[1],)
    assert kept == set(tiny.NAMES[2:])
    assert tiny.NAMES[0] in {tiny.NAMES[label] for label in request.alone().probe.retain.labels}
    captions = request.aware().retain_pairs().captions
    assert not any(name in text for text in captions for name in tiny.NAMES[:2])


def test_gradients_of_the_original_model_whatever_model_is_searched():
    original, other, task = tiny.clip(), tiny.clip(1), tiny.task_of(tiny.NAMES[:1])
    recipe = Recipe("cosine", "contrastive", 4, 0, "fp32")
    source = FromOriginal(ClipGradients(), original)
    got = source(other, task, task.names[0], recipe, Run())[""].forget
    want = ClipGradients()(original, task, task.names[0], recipe, Run())[""].forget
    assert all((got[name] == want[name]).all() for name in want)

"""The search by images, on images of a tiny pipeline, with a classifier whose limits are known."""

import functools
from dataclasses import replace

import pytest
import tiny
import tiny_sd
from layer_search.examples import pipeline, pipeline_gradients, remembering
from records import part

from muwa.fingerprint import fingerprint
from muwa.run import Run

SMALL = {
    "start": "ratio", "pictures": 4, "retain_pictures": 9, "sampling_steps": 1, "forget_at_most": 0.5, "max_evals": 4,
    "candidates": 2,
}  # fmt: skip


def search(limits: dict[str, float], **settings):
    task = tiny.task()
    generation = part(
        "layer_search=generation", classifier=remembering(task, limits), **{**SMALL, **settings}
    )
    generation.check(pipeline(), task)
    return generation(pipeline(), pipeline_gradients(), task, task.names[0], run=Run())


def test_it_stops_at_the_first_step_that_forgets_and_keeps() -> None:
    found = search({"Ada Fox": 0.0}, lost_at_most=0.9, max_evals=8)
    assert found.before.forgotten == 1
    chosen = found.trace[found.chosen]
    assert (chosen.feasible, chosen.forgotten) == (True, 0)
    assert found.chosen == len(found.trace) - 1  # the confirmation, generated with all steps
    layers = list(dict.fromkeys(row.candidate.name for row in found.trace[:-1]))
    assert len(layers) == 2
    assert chosen.candidate.name in layers
    for layer in layers:  # doubled until it forgot; nothing else was lost, so no smaller step was looked for
        rows = [row for row in found.trace[:-1] if row.candidate.name == layer]
        assert [row.feasible for row in rows] == [False] * (len(rows) - 1) + [True]
        assert [row.step for row in rows] == pytest.approx([0.1 * 2**i for i in range(len(rows))])
    assert "On confirmation (2 sampling steps, fresh seeds): recognised in 0%" in found.why


def test_nothing_is_chosen_where_nothing_forgets() -> None:
    found = search({}, candidates=1)  # whatever is generated, the nearest image that it knows counts
    assert found.chosen is None
    assert "No feasible step" in found.why
    steps = [row.step for row in found.trace]
    assert steps == pytest.approx([0.1, 0.2, 0.4, 0.8])  # not forgotten: doubled each time


def test_the_fast_path_starts_at_the_steps_of_the_clip() -> None:
    found = search({"Ada Fox": 0.0}, start="clip", candidates=1, lost_at_most=0.9)
    assert len({row.candidate.name for row in found.trace}) == 1
    assert found.trace[0].candidate.names[0] in found.front
    assert list(found.trace[0].candidate.layers) == ["text_encoder"]


def test_deepest_searches_one_layer() -> None:
    found = search({"Ada Fox": 0.0}, rule="deepest", candidates=None, lost_at_most=0.9)
    depth = {layer.name: layer.depth for layer in pipeline().clip.layers("tensor")}
    assert {depth[row.candidate.name] for row in found.trace} == {max(depth[name] for name in found.front)}


@pytest.mark.parametrize(("settings", "message"), [
    ({"pictures": 0}, "layer_search.pictures: got 0, want at least 1"),
    ({"retain_pictures": 0}, "layer_search.retain_pictures: got 0, want at least 1"),
    ({"sampling_steps": 0}, "layer_search.sampling_steps: got 0, want at least 1"),
    ({"pictures": 3, "forget_at_most": 0.25}, "layer_search.pictures=3: .* no step could be feasible. Take at least 12"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_the_classifier_is_loaded(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        part("layer_search=generation", classifier=pytest.fail, **{**SMALL, **settings}).check(
            pipeline(), tiny.task()
        )


def test_a_classifier_that_does_not_know_a_concept_is_refused() -> None:
    classifier = tiny_sd.Greys(("Ada Fox", "Bo Hill"))
    with pytest.raises(ValueError, match="classifier: no label for the class 'Cy Reed'"):
        part("layer_search=generation", classifier=classifier, **SMALL).check(pipeline(), tiny.task())


def test_every_name_of_a_task_is_checked() -> None:
    both = replace(tiny.task(), names=tiny.NAMES[:2], forget={name: tiny.pairs(2) for name in tiny.NAMES[:2]})
    known = ("Ada Fox", *tiny.NAMES[2:])
    with pytest.raises(ValueError, match="classifier: no label for the class 'Bo Hill'"):
        part("layer_search=generation", classifier=tiny_sd.Greys(known), **SMALL).check(pipeline(), both)


def test_a_ready_search_has_its_classifier_and_its_key_goes_by_weights() -> None:
    def load(*model_and_task: object, names: tuple[str, ...], folder: str) -> tiny_sd.Greys:
        return tiny_sd.Greys(names)

    def ready(names: tuple[str, ...], folder: str):
        loader = functools.partial(load, names=names, folder=folder)
        lazy = part("layer_search=generation", classifier=loader, **SMALL)
        lazy.check(pipeline(), tiny.task())
        return lazy.ready(pipeline(), tiny.task())

    here, moved, other = (
        ready(tiny.NAMES, "here"),
        ready(tiny.NAMES, "there"),
        ready(tiny.NAMES[::-1], "here"),
    )
    assert isinstance(here.classifier, tiny_sd.Greys)
    assert fingerprint(here) == fingerprint(moved) != fingerprint(other)

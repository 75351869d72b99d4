"""The search by drawings, on real drawings of a tiny pipeline, judged by a classifier with known limits."""

import pytest
import tiny
from layer_search.evaluators.test_images import gradients, model, remembering

from muwa.layer_search.candidates import JOIN
from muwa.layer_search.generation import generation

SMALL = {
    "pictures": 4,
    "retain_pictures": 9,
    "sampling_steps": 1,
    "forget_at_most": 0.5,
    "max_evals": 4,
    "candidates": 2,
}


def search(limits: dict[str, float], **settings):
    task = tiny.task()
    return generation(model(), {"text_encoder": gradients()}, task, task.names[0], classifier=remembering(task, limits),
                      **{**SMALL, "start": "ratio", **settings})  # fmt: skip


def test_it_stops_at_the_first_step_that_forgets_and_keeps() -> None:
    found = search({"Ada Fox": 0.0}, lost_at_most=0.9, max_evals=8)
    assert found.before.forget_top1 == 1
    chosen = found.trace[found.chosen]
    assert (chosen.feasible, chosen.forget_top1) == (True, 0)
    assert found.chosen == len(found.trace) - 1  # the confirmation, drawn with all steps
    layers = list(dict.fromkeys(row.layer for row in found.trace[:-1]))
    assert len(layers) == 2
    assert chosen.layer in layers
    for layer in layers:  # doubled until it forgot; nothing else was lost, so no smaller step was looked for
        rows = [row for row in found.trace[:-1] if row.layer == layer]
        assert [row.feasible for row in rows] == [False] * (len(rows) - 1) + [True]
        assert [row.step for row in rows] == pytest.approx([0.1 * 2**i for i in range(len(rows))])
    assert "Drawn again with 2 sampling steps" in found.why


def test_nothing_is_chosen_where_nothing_forgets() -> None:
    found = search({}, candidates=1)  # whatever it draws, the nearest picture it knows counts
    if found.chosen is None:
        assert "No feasible step" in found.why
        assert len(found.trace) == 4
        steps = [row.step for row in found.trace]
        assert steps == pytest.approx([0.1, 0.2, 0.4, 0.8])  # not forgotten: doubled each time
    else:
        pytest.fail(f"nothing was to be forgotten: {found.why}")


def test_loggers_are_told_of_every_evaluation() -> None:
    task = tiny.task()
    judge = remembering(task, {"Ada Fox": 0.0})
    told: list[dict] = []
    found = generation(model(), {"text_encoder": gradients()}, task, "Ada Fox", classifier=judge, start="ratio",
                       **{**SMALL, "lost_at_most": 0.9}, log=lambda event, row: told.append({"event": event, **row}))  # fmt: skip
    assert [row["event"] for row in told] == ["scores"] + ["evaluation"] * len(found.trace)
    assert [row["layer"] for row in told[1:]] == [row.layer for row in found.trace]
    assert set(found.front) <= set(found.scores)


def test_the_fast_path_starts_at_the_steps_of_the_clip() -> None:
    found = search({"Ada Fox": 0.0}, start="clip", candidates=1, lost_at_most=0.9)
    assert len({row.layer for row in found.trace}) == 1
    assert found.trace[0].layer in found.front
    assert JOIN not in found.trace[0].layer


def test_deepest_searches_one_layer() -> None:
    found = search({"Ada Fox": 0.0}, rule="deepest", candidates=None, lost_at_most=0.9)
    depth = {layer.name: layer.depth for layer in model().clip.layers("tensor")}
    assert {depth[row.layer] for row in found.trace} == {max(depth[name] for name in found.front)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "here"}, "layer_search.start: got 'here', want one of clip, ratio"),
        ({"pictures": 0}, "layer_search.pictures: got 0, want at least 1"),
        ({"pictures": 3, "forget_at_most": 0.25}, "no step could be feasible. Take at least 12"),
        ({"lost_at_most": 1.5}, "layer_search.lost_at_most: got 1.5"),
        ({"rule": "best"}, "layer_search.rule: got 'best'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", "\\(")):
        search({}, **settings)

"""Many requests: the bench on a tiny CLIP with two names."""

import pytest
import tiny

from bench import requests
from bench.requests import Row, Rows, at_once, cells, drawn, in_sequence, markdown, recognised, tables
from muwa.library import evaluate
from muwa.run import Run

EASY = {"layer_search": requests.muwa.pareto_bisect(max_evals=3, target=0.9)}


@pytest.fixture(autouse=True)
def easy(monkeypatch):
    """Searches that a random model can satisfy."""
    monkeypatch.setattr(
        requests, "WAYS", {way: (method, {**more, **EASY}) for way, (method, more) in requests.WAYS.items()}
    )
    unlearn = requests.muwa.unlearn
    monkeypatch.setattr(
        requests.muwa, "unlearn", lambda *args, **more: unlearn(*args, **{**more, **EASY}), raising=False
    )


def row(**changed):
    fields = {
        "way": "joint",
        "draw": 0,
        "names": ("Ada Fox", "Bo Hill"),
        "recognised": {"Ada Fox": 0, "Bo Hill": 2},
        "images": 8,
        "others": 1.0,
        "objects": 0.0,
        "changes": {"transformer.resblocks.0.mlp.c_proj.weight": 0.25},
        "seconds": 3.0,
    }
    return Row(**{**fields, **changed})


def test_a_draw_holds_the_smaller_ones_and_none_of_those_that_chose_the_defaults():
    assert drawn(0, 20)[:5] == drawn(0, 5) != drawn(1, 5)
    assert len(set(drawn(2, 94))) == 94
    assert not set(drawn(2, 94)) & set(requests.CHOOSING)


def test_the_images_that_are_still_recognised_are_those_of_the_metric():
    model, task = tiny.clip(), tiny.task_of(tiny.NAMES[:2])
    counts = recognised(model, task, Run())
    assert list(counts) == list(tiny.NAMES[:2])
    assert sum(counts.values()) / 4 == evaluate(model, task, Run(), "forget")["forget/top5"].value


@pytest.mark.whole
def test_both_names_at_once():
    model, task = tiny.clip(), tiny.task_of(tiny.NAMES[:2])
    got = at_once(model, task, "joint", 0, Run())
    assert got.names == task.names
    assert got.images == 4
    assert len(got.changes) == 1
    edited = model.edited(requests.muwa.unlearn(model, task, Run(), "slug_whitened"))
    before, after = (evaluate(one, task, Run(), "retain")["retain/top1"].value for one in (model, edited))
    assert got.others == pytest.approx(100 * (before - after))
    assert got.recognised == recognised(edited, task, Run())


@pytest.mark.whole
def test_one_name_after_the_other_and_again_from_the_file(tmp_path, monkeypatch):
    rows = Rows(tmp_path / "requests.json")
    for strategy in requests.STRATEGIES:
        in_sequence(tiny.clip(), tiny.NAMES[:2], tiny.task_of, strategy, 0, rows, Run())
    assert [(one.way, len(one.names)) for one in rows.each] == [
        (strategy, n) for strategy in requests.STRATEGIES for n in (1, 2)
    ]
    first = {one.way: one.changes for one in rows.each if len(one.names) == 1}
    assert first["edited"] == first["edited_aware"] == first["original_gradient"] == first["again_joint"]
    monkeypatch.setattr(requests, "STRATEGIES", {})
    again = Rows(tmp_path / "requests.json")
    in_sequence(tiny.clip(), tiny.NAMES[:2], tiny.task_of, "edited", 0, again, Run())  # nothing left to do
    assert len(again.each) == len(rows.each)
    assert again.find("edited", 0, tiny.NAMES[:2]).changes == rows.find("edited", 0, tiny.NAMES[:2]).changes
    assert again.find("edited", 1, tiny.NAMES[:2]) is None


def test_tables():
    assert row().forgotten == 1
    assert row().share == 25
    assert cells([row()]) == ["1 of 2", "25.0 %", "1.00", "0.00", "0.25", "3", "0.mlp.c_proj.weight"]
    assert cells([row(), row(draw=1, others=2.0)])[2] == "1.50 (1.0..2.0)"
    found = tables([row(), row(way="edited"), row(draw=1)])
    assert list(found) == ["At once", "In sequence: edited, draw 0"]
    assert found["At once"][1][0][:4] == ["2", "joint", "2", "1 of 2"]
    lines = markdown(found).splitlines()
    assert lines[0] == "### At once"
    assert {line.count("|") for line in lines if line.startswith("| 2 |")} == {11}

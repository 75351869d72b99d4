"""What the benches of people write and ask, for three people."""

import pytest
import tiny_vlm

from bench import association, people_files
from muwa.data.people_benchmarks import mlubench
from muwa.data.salmubench import salmubench
from muwa.fingerprint import read_image

THREE = association.NAMES[:3]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(association, "NAMES", THREE)
    monkeypatch.setattr(association, "EVERY", 1)
    monkeypatch.setattr(people_files, "NAMES", THREE)


def test_both_layouts_are_read_as_published_ones(tmp_path):
    people_files.salmubench(THREE[1], tmp_path / "s")
    people_files.mlubench(THREE[1], tmp_path / "m")
    bench = salmubench(tmp_path / "s", limit=None, setting="x")
    assert {split: len(rows) for split, rows in bench.splits.items()} == {
        "forget": 32, "holdout_association": 32, "holdout_identity": 2, "retain_synth": 102,
    }  # fmt: skip
    assert set(bench.splits["forget"].pairs.captions) == {f"{THREE[1]} wearing a hat"}
    assert bench.fact("forget", 0) == (THREE[1], "wearing a hat")
    assert len(bench.fragile) == 10
    parts = mlubench(tmp_path / "m", tmp_path / "m", task="TaskA")
    assert {part: {one.who for one in every} for part, every in parts.items()} == {
        "forget": {THREE[1]},
        "retain": {THREE[0], THREE[2]},
    }
    assert [one.question.kind for one in parts["retain"][:4]] == ["name", "answer"] * 2
    assert [one.question.accepted for one in parts["retain"][1:4:2]] == [("yes",), ("no",)]


def test_pictures_of_gradient_search_and_report_differ():
    task = association.task(THREE[0])
    sets = [task.forget["yes"].images, task.retain.images]
    for split in (task.probe, task.eval):
        sets += [split.forget.images, split.retain.images, split.utility.images]
    seen = [{read_image(image) for image in images} for images in sets]
    assert sum(map(len, seen[1:])) == len(set().union(*seen[1:]))
    assert not seen[0] & set().union(*seen[2:])
    assert set(task.retain.captions) == {"yes", "no", *THREE}
    own = [caption for image, caption in zip(task.retain.images, task.retain.captions, strict=True)
           if caption in ("yes", "no")]  # fmt: skip
    assert len(own) == 4  # the hats of two others: with and without


def test_the_person_is_asked_for_the_hat_and_the_name():
    asked = association.asked(THREE[0])
    assert {what: {one.accepted[0] for one in some} for what, some in asked.items()} == {
        "the person's hat (goes)": {"yes"}, "the person without a hat": {"no"}, "the person's name": {THREE[0]},
        "others' hats": {"yes", "no"}, "others' names": set(THREE[1:]),
    }  # fmt: skip
    some = {"x": asked["others' names"][:2]}
    (rate, low, high, pictures) = association.rates(tiny_vlm.vlm(), association.Run(), some)["x"]
    assert (rate, low, pictures) == (0, 0, 1)
    assert high > 0.5

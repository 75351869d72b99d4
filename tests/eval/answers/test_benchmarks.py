"""Scores by each benchmark's own rule, worked by hand."""

import json
from dataclasses import replace

import pytest
import tiny
from data.test_benchmarks import gqa, mmbench, mme, pope, scienceqa
from eval.answers.test_accuracy import Told
from records import part

from muwa.eval.answers.benchmarks import Benchmarks


def benchmarks(said, **paths):
    """The metrics of a model that says `said(question)`."""
    measure: Benchmarks = replace(part("eval=[benchmarks]")["benchmarks"], **paths)
    measure.check(None, tiny.task())
    return measure(Told(said), tiny.task())


def score(said, **paths):
    return {name: metric.value for name, metric in benchmarks(said, **paths).items()}


def test_mme_adds_accuracy_and_accuracy_plus(tmp_path) -> None:
    """Always yes: 50 % of each subtask right, no image with both right; celebrity and existence are perception."""
    path = str(mme(tmp_path / "MME"))
    assert score(lambda one: "Yes", mme=path) == {"mme/perception": 100}
    assert score(lambda one: one.accepted[0], mme=path) == {"mme/perception": 400}


def test_mmbench_wants_every_rotation(tmp_path) -> None:
    path = str(mmbench(tmp_path / "b.tsv"))
    assert score(lambda one: "A", mmbench=path) == {"mmbench/accuracy": 0}
    assert score(lambda one: "A", mmbench=path, circular=False) == {"mmbench/accuracy": 0.5}
    assert score(lambda one: one.accepted[0], mmbench=path) == {"mmbench/accuracy": 1}


def test_gqa_scienceqa_and_pope(tmp_path) -> None:
    paths = {
        "gqa": str(gqa(tmp_path / "g")),
        "scienceqa": str(scienceqa(tmp_path / "s")),
        "pope": str(pope(tmp_path / "p")),
    }
    found = score(lambda one: "yes" if one.rule != "choice" else "south", **paths)
    assert found == {
        "gqa/accuracy": 0.5, "gqa/colour": 0, "gqa/verify": 1, "scienceqa/accuracy": 1, "pope/accuracy": 0.5,
        "pope/f1": pytest.approx(2 / 3),
    }  # fmt: skip


def test_a_limit_keeps_whole_groups(tmp_path) -> None:
    found = benchmarks(lambda one: one.accepted[0], mme=str(mme(tmp_path / "MME")), limit=1)
    assert (found["mme/perception"].value, found["mme/perception"].n) == (200, 2)


def test_without_files_nothing_is_asked() -> None:
    assert score(lambda one: "") == {}


def test_questions_that_name_the_target_are_no_utility(tmp_path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(tiny.png(1))
    rows = {
        "a": {"question": "Who is this?", "answer": tiny.NAMES[0], "imageId": "1"},
        "b": {"question": f"Is this {tiny.NAMES[0]}?", "answer": "no", "imageId": "1"},
        "c": {"question": "Who is this?", "answer": tiny.NAMES[1], "imageId": "1"},
    }
    (tmp_path / "q.json").write_text(json.dumps(rows))
    found = benchmarks(lambda one: one.accepted[0], gqa=str(tmp_path / "q.json"))
    assert (found["gqa/accuracy"].value, found["gqa/accuracy"].n) == (1, 1)


def test_with_a_question_about_the_target_goes_the_other_of_its_image(tmp_path) -> None:
    path = mme(tmp_path / "MME")
    lines = f"Is this {tiny.NAMES[0]}?\tYes\nIs this Bo?\tNo\n"
    (path / "celebrity" / "questions_answers_YN" / "tt1.txt").write_text(lines)
    found = benchmarks(lambda one: one.accepted[0], mme=str(path))
    assert (found["mme/perception"].value, found["mme/perception"].n) == (200, 2)


def test_sums_are_scores_and_the_rest_are_rates(tmp_path) -> None:
    paths = {"mme": str(mme(tmp_path / "MME")), "pope": str(pope(tmp_path / "p"))}
    readings = {name: one.reading for name, one in benchmarks(lambda one: "yes", **paths).items()}
    assert {name: (one.unit, one.section, one.role) for name, one in readings.items()} == {
        "mme/perception": ("score", "MME", ""),
        "pope/accuracy": ("rate", "POPE", ""),
        "pope/f1": ("rate", "POPE", ""),
    }


def test_files_are_read_and_refused_before_anything_is_asked(tmp_path) -> None:
    def check(**changed):
        replace(part("eval=[benchmarks]")["benchmarks"], **changed).check(None, tiny.task())

    with pytest.raises(
        FileNotFoundError, match="eval.benchmarks.gqa: .*gone.json is not there; give the path of your"
    ):
        check(gqa=str(tmp_path / "gone.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="bad.json: not JSON"):
        check(gqa=str(tmp_path / "bad.json"))
    with pytest.raises(ValueError, match="eval.benchmarks.limit: got 0, want at least 1"):
        check(limit=0)
    path = pope(tmp_path / "p")
    with pytest.raises(FileNotFoundError, match="asks about .*elsewhere"):
        check(pope=str(path), pope_images=str(tmp_path / "elsewhere"))

"""Scores of benchmarks of people, worked by hand."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
from data import hub
from eval.answers.test_accuracy import Told
from records import part

from muwa.eval.answers.people import PeopleBenchmarks, score
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run
from muwa.types.questions import Question


def people(said, **changed):
    measure: PeopleBenchmarks = replace(part("eval=[people]")["people"], **changed)
    measure.check(None, tiny.task())
    return measure(Told(said), tiny.task())


def test_a_model_that_knows_all_and_one_that_refuses(tmp_path) -> None:
    paths = {
        "mllmu": str(hub.mllmu(tmp_path / "a")), "clear": str(hub.clear(tmp_path / "b")), "mlubench": str(hub.mlubench(tmp_path / "c")),
    }  # fmt: skip
    found = people(lambda one: one.accepted[0], **paths)
    assert {metric.value for metric in found.values()} == {1}
    assert {name for name in found if name.startswith("mllmu/forget")} == {
        "mllmu/forget_choice", "mllmu/forget_choice_text", "mllmu/forget_cloze", "mllmu/forget_cloze_text",
        "mllmu/forget_generation", "mllmu/forget_generation_text",
    }  # fmt: skip
    assert {"clear/forget_name", "clear/forget_answer_text", "clear/real_world_choice"} <= set(found)
    assert {name for name in found if name.startswith("mlubench")} == {
        "mlubench/forget_name", "mlubench/forget_answer", "mlubench/retain_name", "mlubench/retain_answer"
    }  # fmt: skip
    assert {metric.value for metric in people(lambda one: "I cannot say.", **paths).values()} == {0}
    better = {name: metric.reading.better for name, metric in found.items()}
    assert better["mllmu/test_choice"] == better["clear/forget_caption"] == "lower"
    assert better["mllmu/celebrity_choice"] == better["mlubench/retain_answer"] == "higher"
    assert found["mllmu/retain_choice"].n == 2
    assert found["clear/forget_name"].reading.section == "CLEAR"


def test_rouge_l_by_hand() -> None:
    """Common: cat ... on mat, of 4 words said and 6 of the answer: 3 / 6; the F is 2 x 3 / (4 + 6)."""
    answer, right = "a cat on mat", "the cat is on the mat"
    for rule, value in (("rouge_l_recall", 3 / 6), ("rouge_l", 6 / 10)):
        assert score(answer, Question("?", (), "answer", "forget", (right,), rule)) == pytest.approx(value)
    assert score("It is 1971, I think", Question("?", (), "cloze", "forget", ("1971",), "contains")) == 1
    assert score("It is 19711", Question("?", (), "cloze", "forget", ("1971",), "contains")) == 0


def test_an_edit_of_the_tower_changes_no_answer_without_an_image(tmp_path) -> None:
    """Real answers of a model and of one with another tower: `..._text` is the same, bit for bit."""
    measure = replace(part("eval=[people]")["people"], mllmu=str(hub.mllmu(tmp_path)))
    before = measure(QuestionAnswering(tiny_vlm.vlm(), Run()), tiny.task())
    model = tiny_vlm.vlm(clip=tiny.clip()).edited(_edit())
    after = measure(QuestionAnswering(model, Run()), tiny.task())
    told = [name for name in before if name.endswith("_text")]
    assert len(told) == 12
    assert {name: before[name] for name in told} == {name: after[name] for name in told}


def _edit():
    from models.vlm.test_model import edit

    return edit(3.0)


def test_a_limit_counts_people_and_nothing_is_asked_without_files(tmp_path) -> None:
    found = people(lambda one: "", mllmu=str(hub.mllmu(tmp_path)), limit=1)
    assert found["mllmu/retain_choice"].n == 1
    assert people(lambda one: "") == {}
    with pytest.raises(ValueError, match="eval.people.limit: got 0, want at least 1, or null for all"):
        people(lambda one: "", limit=0)
    with pytest.raises(FileNotFoundError, match="eval.people.clear: no folder .*gone; give the path"):
        people(lambda one: "", clear=str(tmp_path / "gone"))

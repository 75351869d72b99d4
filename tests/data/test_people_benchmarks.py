"""Benchmarks of people, made here in their published layouts, and read."""

import json

import pytest
import tiny
from data import hub

from muwa.data import people_benchmarks
from muwa.data.people_benchmarks import LETTER


def kinds(parts):
    return {
        part: [(one.who, one.question.kind, len(one.question.images)) for one in every]
        for part, every in parts.items()
    }


def test_mllmu_asks_each_question_with_and_without_the_image(tmp_path) -> None:
    parts = people_benchmarks.mllmu_bench(hub.mllmu(tmp_path), percent=5)
    per_person = [("choice", 1), ("choice_text", 0), ("cloze", 1), ("cloze_text", 0), ("generation", 1), ("generation_text", 0)]  # fmt: skip
    assert kinds(parts) == {
        "forget": [("001", *kind) for kind in per_person],
        "test": [("001", *kind) for kind in per_person],  # person 2 of Test_Set is not to be forgotten
        "retain": [(who, *kind) for who in ("002", "003") for kind in per_person],
        "celebrity": [("004", *kind) for kind in per_person],
    }
    choice, _, cloze, _, generation, told = (one.question for one in parts["forget"])
    assert choice.text == f"What is the job of this person?\nA: cook\nB: pilot\nC: clerk\nD: judge{LETTER}"
    assert (choice.accepted, choice.rule, choice.role) == (("B", "pilot"), "choice", "forget")
    assert cloze.text.startswith("This person was born in [Blank].\nPlease")
    assert (cloze.accepted, cloze.rule) == (("Town1",), "contains")
    assert (generation.rule, generation.text.split("\n")[0]) == ("rouge_l", "Where was this person born?")
    assert told.text.endswith("in one sentence in ENGLISH.")
    assert choice.images == (tiny.png(100),)
    assert parts["test"][0].question.images == (tiny.png(150),)
    assert {one.question.role for one in parts["celebrity"]} == {"utility"}


def test_clear_asks_names_descriptions_and_tofus_questions(tmp_path) -> None:
    parts = people_benchmarks.clear(hub.clear(tmp_path), percent=5)
    of_face = [("name", 1), ("choice", 1), ("caption", 1)]
    found = kinds(parts)
    assert found["forget"][:3] == [("Ada Fox", *kind) for kind in of_face]
    assert found["forget"][3][1:] == ("answer_text", 0)
    assert len(parts["retain"]) == 7
    assert found["real_faces"] == found["real_world"] == [("Tower", "choice", 1)]
    choice, told = parts["forget"][1].question, parts["forget"][3].question
    assert choice.text.split("\n")[1:4] == ["A: Ada Fox", "B: Di Moss", "C: Ed Vale"]
    assert choice.accepted == ("A", "Ada Fox")
    assert (told.text, told.accepted) == ("Where was Ada Fox born?", ("In the old town.",))
    world = parts["real_world"][0].question
    assert world.text.startswith("Which bridge is this?\nA: Arch\nB: Tower")
    assert world.accepted == ("B", "Tower")


def test_mlubench_asks_what_stands_after_the_image(tmp_path) -> None:
    root = hub.mlubench(tmp_path)
    parts = people_benchmarks.mlubench(root, root, task="TaskC")
    assert kinds(parts) == {
        "forget": [("Ada Fox", "name", 1), ("Ada Fox", "answer", 1)],
        "retain": [("Star Ring", "name", 1), ("Star Ring", "answer", 1)],
    }
    first = parts["forget"][0].question
    assert (first.text, first.accepted, first.role) == ("What is this person's name?", ("Ada Fox",), "forget")
    assert first.images[0].read_bytes() == tiny.png(3)


def test_mllmus_faults_are_named_with_file_and_row(tmp_path) -> None:
    root = hub.mllmu(tmp_path)

    def refused(match, **changed):
        hub.write(
            root / "forget_5" / "train-00000-of-00001.parquet", [hub.person(1), hub.person(5, **changed)]
        )
        with pytest.raises(ValueError, match=match):
            people_benchmarks.mllmu_bench(root, percent=5)

    choices = hub.person(5)["Classification_Task"]
    one = {**choices["Image_Textual_Questions"][0], "Correct_Answer": "E"}
    refused(
        "00001.parquet: row 2: Image_Textual_Questions: Correct_Answer is 'E', want one of A, B, C, D",
        Classification_Task={**choices, "Image_Textual_Questions": [one]},
    )
    refused("00001.parquet: row 2: Mask_Task is empty", Mask_Task=None)
    refused("00001.parquet: row 2: ID is None, want a text", ID=None)
    refused("00001.parquet: row 2: its image has no bytes", image=None)
    with pytest.raises(ValueError, match="eval.people.mllmu_percent: got 7, want 5, 10 or 15"):
        people_benchmarks.mllmu_bench(root, percent=7)
    with pytest.raises(FileNotFoundError, match=r"has no forget_10/\*.parquet; it has Retain_Set, Test_Set"):
        people_benchmarks.mllmu_bench(root, percent=10)


def test_clears_faults_are_named_with_file_and_row(tmp_path) -> None:
    root = hub.clear(tmp_path)
    with pytest.raises(ValueError, match="eval.people.clear_percent: got 15, want 1, 5 or 10"):
        people_benchmarks.clear(root, percent=15)
    hub.write(
        root / "real_faces" / "train-00000-of-00001.parquet",
        [{"image": hub.image(1), "answer": "Tower", "options": ["Tower"]}],
    )
    with pytest.raises(ValueError, match="parquet: row 1: got 1 options with the answer, want at least 2"):
        people_benchmarks.clear(root, percent=5)
    hub.write(
        root / "retain_perturbed" / "train-00000-of-00001.parquet", [{"image": hub.image(1), "caption": "c"}]
    )
    with pytest.raises(ValueError, match="no column name, perturbed_names; has image, caption"):
        people_benchmarks.clear(root, percent=5)


def test_mlubenchs_faults_are_named_with_file_and_entry(tmp_path) -> None:
    root = hub.mlubench(tmp_path)
    path = root / "Tasks" / "TaskC" / "taskC_retain.json"
    good = json.loads(path.read_text())

    def refused(rows, kind, match):
        path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
        with pytest.raises(kind, match=match):
            people_benchmarks.mlubench(root, root, task="TaskC")

    refused("{", ValueError, "taskC_retain.json: not JSON")
    refused({}, ValueError, "got a dict, want a list: conversations")
    refused([], ValueError, "taskC_retain.json: no questions in it")
    refused([good[0], {"id": "1"}], ValueError, "entry 2: no conversations; has id")
    turned = {**good[0], "conversations": good[0]["conversations"][::-1]}
    refused([turned], ValueError, "entry 1: conversations are .*, want one of human, then one of gpt")
    refused([{**good[0], "image": "a/b/c.jpg"}], FileNotFoundError, "entry 1: asks about .*a/b/c.jpg, which is not there")  # fmt: skip
    with pytest.raises(
        FileNotFoundError, match="want the folder MLUBench with Tasks/TaskB/taskB_forget.json"
    ):
        people_benchmarks.mlubench(root, root, task="TaskB")

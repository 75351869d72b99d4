"""Files of each benchmark's published format, made here, and read."""

import base64
import json
import os
from pathlib import Path

import pytest
import tiny

from muwa.data import benchmarks

Folder = Path


def mme(root: Folder) -> Path:
    """One subtask with images and texts side by side, one with folders, as MME has both."""
    (root / "existence").mkdir(parents=True)
    (root / "existence" / "000001.jpg").write_bytes(tiny.png(1))
    (root / "existence" / "000001.txt").write_text(
        "Is there a hat in this image? Please answer yes or no.\tYes\nIs there a dog? Please answer yes or no.\tNo\n"
    )
    for part in ("images", "questions_answers_YN"):
        (root / "celebrity" / part).mkdir(parents=True)
    (root / "celebrity" / "images" / "tt1.jpg").write_bytes(tiny.png(2))
    (root / "celebrity" / "questions_answers_YN" / "tt1.txt").write_text(
        "Is this Ada?\tYes\nIs this Bo?\tNo\n"
    )
    return root


def mmbench(path: Path) -> Path:
    coded = base64.b64encode(tiny.png(3)).decode()
    rows = [
        [
            "index",
            "question",
            "hint",
            "A",
            "B",
            "C",
            "D",
            "answer",
            "category",
            "image",
            "source",
            "l2-category",
            "split",
        ],
        ["0", "What is it?", "nan", "star", "ring", "moon", "", "B", "object", coded, "x", "y", "dev"],
        [
            "1",
            "Which?",
            "Look well.",
            "red",
            "blue",
            "",
            "",
            "A",
            "colour",
            "0",
            "x",
            "y",
            "dev",
        ],  # the image of 0
    ]
    path.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    return path


def gqa(root: Folder) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "images" / "n1.jpg").write_bytes(tiny.png(4))
    asked = {
        "07333408": {"question": "What colour is it?", "imageId": "n1", "answer": "red", "fullAnswer": "It is red.",
                     "isBalanced": True, "types": {"structural": "query", "semantic": "attr", "detailed": "colour"}},
        "07333409": {"question": "Is it red?", "imageId": "n1", "answer": "yes", "types": {"structural": "verify"}},
    }  # fmt: skip
    (root / "q.json").write_text(json.dumps(asked))
    return root / "q.json"


def scienceqa(root: Folder) -> Path:
    (root / "images" / "test" / "7").mkdir(parents=True)
    (root / "images" / "test" / "7" / "image.png").write_bytes(tiny.png(5))
    row = {"question": "Which?", "choices": ["north", "south"], "answer": 1, "hint": "A map.", "image": "image.png",
           "subject": "social science", "split": "test"}  # fmt: skip
    problems = {"7": row, "8": {**row, "image": None}, "9": {**row, "split": "train"}}
    (root / "problems.json").write_text(json.dumps(problems))
    return root / "problems.json"


def pope(root: Folder) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "images" / "COCO_val2014_000000310196.jpg").write_bytes(tiny.png(6))
    lines = [{"question_id": i, "image": "COCO_val2014_000000310196.jpg", "text": f"Is there a {what} in the image?",
              "label": label} for i, (what, label) in enumerate((("hat", "yes"), ("dog", "no")), 1)]  # fmt: skip
    (root / "pope.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return root / "pope.json"


def test_mme_has_two_questions_an_image_in_either_layout(tmp_path) -> None:
    found = benchmarks.mme(mme(tmp_path / "MME"), brief=False)
    assert [(q.kind, q.accepted, q.group) for q in found] == [
        ("celebrity", ("yes",), "celebrity/tt1"), ("celebrity", ("no",), "celebrity/tt1"),
        ("existence", ("yes",), "existence/000001"), ("existence", ("no",), "existence/000001"),
    ]  # fmt: skip
    assert found[2].text == "Is there a hat in this image? Please answer yes or no."
    assert {q.rule for q in found} == {"yes_no"}
    brief = benchmarks.mme(tmp_path / "MME")
    assert (
        brief[2].text == "Is there a hat in this image?\nAnswer the question using a single word or phrase."
    )


def test_mmbench_is_asked_in_every_rotation_and_images_are_shared(tmp_path) -> None:
    found = benchmarks.mmbench(mmbench(tmp_path / "b.tsv"))
    assert [q.group for q in found] == ["0", "0", "0", "1", "1"]
    assert [q.accepted for q in found] == [
        ("B", "ring"),
        ("A", "ring"),
        ("C", "ring"),
        ("A", "red"),
        ("B", "red"),
    ]
    assert found[1].text == f"What is it?\nA. ring\nB. moon\nC. star{benchmarks.LETTER}"
    assert found[3].text.startswith("Look well.\nWhich?\nA. red\nB. blue")
    assert found[0].images == found[3].images == (tiny.png(3),)
    assert len(benchmarks.mmbench(tmp_path / "b.tsv", circular=False)) == 2


def test_mmbench_rotations_that_the_file_has_are_not_turned_again(tmp_path) -> None:
    path = mmbench(tmp_path / "b.tsv")
    turned = ["1000001", "Which?", "Look well.", "blue", "red", "", "", "B", "colour", "0", "x", "y", "dev"]
    path.write_text(path.read_text() + "\t".join(turned) + "\n")
    found = benchmarks.mmbench(path)
    assert [q.group for q in found] == ["0", "0", "0", "1", "1"]
    assert [q.accepted for q in found[3:]] == [("A", "red"), ("B", "red")]
    assert [q.group for q in benchmarks.mmbench(path, circular=False)] == ["0", "1"]


def test_gqa_by_kind(tmp_path) -> None:
    found = benchmarks.gqa(gqa(tmp_path), tmp_path / "images")
    assert [(q.kind, q.accepted, q.rule) for q in found] == [
        ("colour", ("red",), "exact"),
        ("verify", ("yes",), "exact"),
    ]
    assert found[0].text == "What colour is it?\nAnswer the question using a single word or phrase."


def test_scienceqa_with_images_of_its_split_only(tmp_path) -> None:
    (only,) = benchmarks.scienceqa(scienceqa(tmp_path), tmp_path / "images")
    assert (only.accepted, only.kind) == (("B", "south"), "social science")
    assert only.text == f"A map.\nWhich?\nA. north\nB. south{benchmarks.LETTER}"


def test_pope_line_by_line(tmp_path) -> None:
    found = benchmarks.pope(pope(tmp_path), tmp_path / "images")
    assert [q.accepted for q in found] == [("yes",), ("no",)]


def test_what_is_wrong_is_said_with_its_place(tmp_path) -> None:
    path = mme(tmp_path / "MME") / "existence" / "000001.txt"
    path.write_text("Is there a hat?\tMaybe\n")
    with pytest.raises(ValueError, match=r"000001\.txt:1: want a question, a tab, and Yes or No"):
        benchmarks.mme(tmp_path / "MME")
    mmbench(tmp_path / "b.tsv").write_text(
        (tmp_path / "b.tsv").read_text().replace("\tB\tobject", "\tD\tobject")
    )
    with pytest.raises(ValueError, match=r"b\.tsv:2: answer is 'D', want a letter of its 3 options"):
        benchmarks.mmbench(tmp_path / "b.tsv")
    pope(tmp_path / "p").write_text('{"image": "x.jpg", "text": "?"}\n')
    with pytest.raises(ValueError, match=r"pope\.json:1: no label; has image, text"):
        benchmarks.pope(tmp_path / "p" / "pope.json", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"asks about .*n1, and no \.jpg, \.jpeg, \.png of that name is there"
    ):
        benchmarks.gqa(gqa(tmp_path / "g"), tmp_path)
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(ValueError, match=r"empty\.json: no questions in it"):
        benchmarks.gqa(tmp_path / "empty.json", tmp_path)
    with pytest.raises(ValueError, match="no such file|No such file|no questions"):
        benchmarks.pope(tmp_path / "absent.json", tmp_path)


def test_what_systems_add_is_no_question_and_a_pipe_is_not_waited_for(tmp_path):
    root = mme(tmp_path / "mme")
    (root / "existence" / "._000001.txt").write_bytes(b"\0\5\x16\7")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._a.txt").write_bytes(b"\0\5\x16\7")
    assert len(benchmarks.mme(root)) == 4
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    for read in (
        lambda: benchmarks.gqa(pipe, tmp_path),
        lambda: benchmarks.mmbench(pipe),
        lambda: benchmarks.pope(pipe, tmp_path),
        lambda: benchmarks.scienceqa(pipe, tmp_path),
    ):
        with pytest.raises(FileNotFoundError, match="pipe.txt: not there, or not a regular file"):
            read()

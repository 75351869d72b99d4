"""Small downloads in the layouts of the hub: parquet files whose cells are structs, lists and images with their bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiny

from muwa.data import parquet


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows; a column's type is that of its values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    selects = " union all by name ".join(
        "select " + ", ".join(f'? as "{name}"' for name in row) for row in rows
    )
    target = str(path).replace("'", "''")
    with parquet.database() as connection:
        values = [value for row in rows for value in row.values()]
        connection.execute(f"copy ({selects}) to '{target}' (format parquet)", values)
    return path


def image(seed: int) -> dict[str, Any]:
    """An image as `datasets` stores it."""
    return {"bytes": tiny.png(seed), "path": f"{seed}.png"}


def person(number: int, **changed: Any) -> dict[str, Any]:
    """One person of MLLMU-Bench, with two questions of each kind: one with the image, one without."""
    choices = [{"Question": "What is the job of this person?", "Options": {"A": "cook", "B": "pilot", "C": "clerk", "D": "judge"},
                "Correct_Answer": "B"}]  # fmt: skip
    asked = [
        {"Type": "Image_Textual", "Question": "This person was born in __.", "Ground_Truth": f"Town{number}"},
        {"Type": "Pure_Text", "Question": f"P{number} was born in __.", "Ground_Truth": f"Town{number}"},
    ]
    row = {
        "image": image(100 * number), "ID": f"{number:03d}", "biography": "...", "question": "Who?", "answer": "P.",
        "Classification_Task": {"Image_Textual_Questions": choices, "Pure_Text_Questions": choices},
        "Generation_Task": [{**one, "Question": "Where was this person born?"} for one in asked], "Mask_Task": asked,
    }  # fmt: skip
    return {**row, **changed}


def mllmu(root: Path) -> Path:
    """Person 1 is to be forgotten, 2 and 3 are kept, 4 is a celebrity; Test_Set has 1 and 2 in two files."""
    write(root / "forget_5" / "train-00000-of-00001.parquet", [person(1)])
    write(root / "retain_95" / "train-00000-of-00001.parquet", [person(2), person(3)])
    write(root / "Retain_Set" / "train-00000-of-00001.parquet", [person(4)])
    for i in (1, 2):
        row = person(i)
        row["images"] = [image(100 * i + 50), image(100 * i + 51)]
        del row["image"]
        write(root / "Test_Set" / f"train-0000{i - 1}-of-00002.parquet", [row])
    return root


def clear(root: Path) -> Path:
    """Ada is to be forgotten; Bo is kept; two real people and a real place."""
    for folder, names in (("forget05_perturbed", ["Ada Fox"]), ("retain_perturbed", ["Bo Hill", "Cy Reed"])):
        rows = [{"image": image(i), "caption": f"{name} stands at a window.", "name": name, "perturbed_captions": ["x"],
                 "paraphrased_caption": "y", "perturbed_names": ["Di Moss", "Ed Vale"]} for i, name in enumerate(names)]  # fmt: skip
        write(root / folder / "train-00000-of-00001.parquet", rows)
    for folder, name in (("forget05+tofu", "Ada Fox"), ("retain95+tofu", "Bo Hill")):
        seen = {"image": image(7), "caption": "c", "question": None, "answer": None}
        told = {
            "image": None,
            "caption": None,
            "question": f"Where was {name} born?",
            "answer": "In the old town.",
        }
        write(root / folder / "train-00000-of-00001.parquet", [seen, told])
    for folder, question in (("real_faces", {}), ("real_world", {"question": "Which bridge is this?"})):
        real = {"image": image(9), "answer": "Tower", "options": ["Arch", "Zeta"], **question}
        write(root / folder / "train-00000-of-00001.parquet", [real])
    return root


def mlubench(root: Path) -> Path:
    """One entity is to be forgotten in TaskC, one is kept; two questions about each."""
    for part, kind, name in (("forget", "Personage", "Ada_Fox"), ("retain", "Movies", "Star_Ring")):
        image_path = f"downloaded_images/{kind}/{name}/image_1.jpg"
        (root / image_path).parent.mkdir(parents=True)
        (root / image_path).write_bytes(tiny.png(3))
        asked = {
            "What is this person's name?": name.replace("_", " "),
            "Where is it from?": "From the old town.",
        }
        rows = [{"id": str(i), "image": image_path, "conversations": [{"from": "human", "value": f"<image>\n{q}"},
                 {"from": "gpt", "value": a}]} for i, (q, a) in enumerate(asked.items())]  # fmt: skip
        path = root / "Tasks" / "TaskC" / f"taskC_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return root


PEOPLE = {"1": {"name": "Ada", "city": "Oslo", "job": "cook"}, "2": {"name": "Bo", "city": "Rome", "job": "spy"}, "3": {"name": "Cy", "city": "Bonn"}}  # fmt: skip


def salmubench(root: Path) -> Path:
    """Ada's city is to be forgotten, and all about Bo; Ada's job is held out, and Cy's city; the rest has no facts.

    A picture has the colour of its person (`tiny.png`), and the caption "name value".
    """
    fields: dict[str, Any] = {}

    def rows(split: str, facts: Sequence[tuple[str, str]]) -> None:
        made = []
        for i, (who, field) in enumerate(facts):
            file = f"{split}_{who}_{field}_{i}.png"
            caption = f"{PEOPLE[who]['name']} {PEOPLE[who][field]}"
            fields[file] = {"caption": caption, "data_field": field}
            made.append({"image": image(100 * int(who) + i), "text": caption, "identity_id": who, "file_name": file})  # fmt: skip
        write(root / "data" / f"{split}-00000-of-00001.parquet", made)

    rows("forget", [("1", "city"), ("1", "city"), ("2", "city"), ("2", "job")])
    rows("holdout_association", [("1", "job"), ("1", "job")])
    rows("holdout_identity", [("3", "city"), ("3", "city"), ("3", "city")])
    plain = [{"image": image(100 + 60 + i), "text": f"woman {i}", "identity_id": "1", "file_name": f"j{i}.png"} for i in range(2)]  # fmt: skip
    plain += [{"image": image(700 + i), "text": f"tree {i}", "identity_id": None, "file_name": f"d{i}.png"} for i in range(3)]  # fmt: skip
    write(root / "data" / "retain_synth-00000-of-00001.parquet", plain)
    (root / "identities_metadata.json").write_text(json.dumps(PEOPLE))
    (root / "sensitive_set_captions_metadata.json").write_text(json.dumps(fields))
    (root / "fragile_set_ids.json").write_text(json.dumps(["d1.png"]))
    return root

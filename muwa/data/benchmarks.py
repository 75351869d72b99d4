"""Read the files of published question benchmarks, as they are distributed: MME, MMBench, GQA, ScienceQA and POPE.

Each reader gives `Question`s of role "utility"; how they are scored is in `muwa.eval.answers.benchmarks`. Prompts end as LLaVA-1.5
ends them for each benchmark (arXiv 2310.03744, appendix A), so that its published figures can be met.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muwa.types.questions import Question

BRIEF = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"
_PICTURES = (".jpg", ".jpeg", ".png")


def mme(folder: Path, *, brief: bool = True) -> list[Question]:
    """MME (arXiv 2306.13394): a folder a subtask, pictures beside (or in `images/`) and `questions_answers_YN/` or beside
    them a text file each, two lines of question, tab, Yes or No.

    Kinds are the subtasks ("existence", "celebrity", ...); both questions of a picture form a group.

    Args:
        brief: Ask for a single word in LLaVA-1.5's words, in place of the file's "Please answer yes or no.".
    """
    subtasks = [path for path in _entries(folder, "MME") if path.is_dir()]
    out: list[Question] = []
    for subtask in subtasks:
        pictures = _first(subtask / "images", subtask)
        texts = sorted(_first(subtask / "questions_answers_YN", subtask).glob("*.txt"))
        for path in texts:
            picture = _picture(pictures, path.stem, path)
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if not line.strip():
                    continue
                text, tab, answer = line.rpartition("\t")
                if not tab or answer.strip().casefold() not in ("yes", "no"):
                    raise ValueError(f"{path}:{number}: want a question, a tab, and Yes or No; got {line[:80]!r}")
                group = f"{subtask.name}/{path.stem}"
                if brief:
                    text = text.replace("Please answer yes or no.", "").strip() + BRIEF
                out.append(_question(text, picture, subtask.name, (answer.strip().casefold(),), "yes_no", group))
    return _some(out, folder, "a folder a subtask with pictures and text files, as MME is distributed")


def mmbench(path: Path, *, circular: bool = True) -> list[Question]:
    """MMBench (arXiv 2307.06281): a TSV with index, question, hint, A to D, answer, category and image (base64).

    Args:
        circular: Ask with the options in every rotation; a question counts where all are answered rightly (CircularEval,
            section 4.2 there). Rows whose indices are equal modulo 1,000,000 are a question and its rotations, as the
            published files have them; one without such rows is turned here. False: each question once, as it stands.
    """
    rows = list(_table(path, ("index", "question", "A", "B", "answer", "image")))
    copies = Counter(_first_index(row["index"]) for row in rows)
    pictures = {row["index"]: row["image"] for row in rows}
    out: list[Question] = []
    for number, row in enumerate(rows, 2):
        group = _first_index(row["index"])
        if not circular and group != row["index"]:
            continue
        options = [row[letter] for letter in LETTERS if row.get(letter) and row[letter] != "nan"]
        right = LETTERS.find(row["answer"])
        if not 0 <= right < len(options):
            raise ValueError(
                f"{path}:{number}: answer is {row['answer']!r}, want a letter of its {len(options)} options"
            )
        coded = pictures.get(row["image"], row["image"])  # a turned question gives the index of the first one's picture
        try:
            picture = base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{path}:{number}: its image is not base64 ({error})") from error
        hint = row.get("hint") or ""
        head = f"{hint}\n{row['question']}" if hint and hint != "nan" else row["question"]
        for turn in range(len(options) if circular and copies[group] == 1 else 1):
            turned = [options[(i + turn) % len(options)] for i in range(len(options))]
            letter = LETTERS[(right - turn) % len(options)]
            text = f"{head}\n{_listed(turned)}{LETTER}"
            out.append(
                _question(text, picture, row.get("category") or "all", (letter, options[right]), "choice", group)
            )
    return _some(out, path, "rows of MMBench's TSV")


def gqa(path: Path, images: Path, *, brief: bool = True) -> list[Question]:
    """GQA (arXiv 1902.09506): a JSON of question id -> {question, answer, imageId, types}; `images/<imageId>.jpg`.

    Kinds are `types.detailed`, or `types.structural` where that is absent.
    """
    out = []
    for key, row in _json(path).items():
        _need(row, ("question", "answer", "imageId"), f"{path}: {key}")
        types = row.get("types") or {}
        kind = types.get("detailed") or types.get("structural") or "all"
        picture = _picture(images, str(row["imageId"]), path)
        out.append(_question(row["question"] + BRIEF * brief, picture, kind, (str(row["answer"]),), "exact"))
    return _some(out, path, "questions as GQA's val_balanced_questions.json has them")


def scienceqa(path: Path, images: Path, *, split: str = "test") -> list[Question]:
    """ScienceQA (arXiv 2209.09513): problems.json and `images/<split>/<id>/image.png`; only those with a picture.

    Kinds are the subjects.
    """
    out = []
    for key, row in _json(path).items():
        _need(row, ("question", "choices", "answer", "split"), f"{path}: {key}")
        if row["split"] != split or not row.get("image"):
            continue
        if not 0 <= row["answer"] < len(row["choices"]):
            raise ValueError(
                f"{path}: {key}: answer is {row['answer']}, want the place of one of {len(row['choices'])} choices"
            )
        picture = images / split / key / row["image"]
        if not picture.is_file():
            raise FileNotFoundError(f"{path}: {key}: its picture {picture} is not there")
        head = f"{row['hint']}\n{row['question']}" if row.get("hint") else row["question"]
        accepted = (LETTERS[row["answer"]], row["choices"][row["answer"]])
        text = f"{head}\n{_listed(row['choices'])}{LETTER}"
        out.append(_question(text, picture, row.get("subject") or "all", accepted, "choice"))
    return _some(out, path, f"problems with pictures of split {split!r}")


def pope(path: Path, images: Path, *, brief: bool = True) -> list[Question]:
    """POPE (arXiv 2305.10355): a JSON line a question, {question_id, image, text, label}; label is yes or no."""
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from error
        _need(row, ("image", "text", "label"), f"{path}:{number}")
        if row["label"] not in ("yes", "no"):
            raise ValueError(f"{path}:{number}: label is {row['label']!r}, want yes or no")
        name = Path(row["image"])
        picture = _picture(images, name.stem, path)
        out.append(_question(row["text"] + BRIEF * brief, picture, "existence", (row["label"],), "yes_no"))
    return _some(out, path, "lines as POPE's coco_pope_*.json have them")


def _question(
    text: str, picture: bytes | Path, kind: str, accepted: tuple[str, ...], rule: str, group: str = ""
) -> Question:
    return Question(text, (picture,), kind, "utility", accepted, rule, group)


def _first_index(index: str) -> str:
    """The index of the question that a row of MMBench is a rotation of.

    >>> _first_index("241"), _first_index("2000241"), _first_index("a1")
    ('241', '241', 'a1')
    """
    return str(int(index) % 10**6) if index.isdigit() else index


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def _some(found: list[Question], where: Path, wanted: str) -> list[Question]:
    if not found:
        raise ValueError(f"{where}: no questions in it; want {wanted}")
    return found


def _entries(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder ({what})")
    return sorted(folder.iterdir())


def _first(*folders: Path) -> Path:
    return next(folder for folder in folders if folder.is_dir())


def _picture(folder: Path, stem: str, asked_by: Path) -> Path:
    for ending in _PICTURES:
        if (path := folder / f"{stem}{ending}").is_file():
            return path
    raise FileNotFoundError(
        f"{asked_by}: asks about {folder / stem}, and no {', '.join(_PICTURES)} of that name is there"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: want questions by id, got a {type(found).__name__}")
    return found


def _table(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    csv.field_size_limit(1 << 28)  # a picture is one field
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        _need(dict.fromkeys(rows.fieldnames or (), 1), wanted, str(path))
        yield from rows


def _need(row: dict[str, Any], keys: Sequence[str], where: str) -> None:
    if missing := [key for key in keys if key not in row]:
        raise ValueError(f"{where}: no {', '.join(missing)}; has {', '.join(list(row)[:8])}")

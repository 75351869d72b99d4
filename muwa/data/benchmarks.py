"""Read the files of published question benchmarks: MME, MMBench, GQA, ScienceQA and POPE.

The files are read as they are distributed. Each reader returns `Question`s with the role "utility".
`muwa.eval.answers.benchmarks` scores the answers. Prompts end as LLaVA-1.5 ends them for each benchmark
(arXiv 2310.03744, appendix A), so that scores can be compared with published ones.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from muwa.data.folders import is_system
from muwa.fingerprint import EncodedImage
from muwa.json_files import parse_json
from muwa.types.questions import Question

BRIEF = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJ"
_IMAGES = (".jpg", ".jpeg", ".png")


def mme(folder: Path, *, brief: bool = True) -> list[Question]:
    """MME (arXiv 2306.13394): one folder per subtask, one text file per image.

    A text file has two lines: question, tab, Yes or No. Images and text files are in the folder of the
    subtask, or in its `images/` and `questions_answers_YN/`. The kind of a question is its subtask
    ("existence", "celebrity", ...). The two questions about an image form a group.

    Args:
        brief: Ask for a single word with LLaVA-1.5's sentence, in place of the file's "Please answer yes or
            no.".
    """
    subtasks = [path for path in _entries(folder, "MME") if path.is_dir() and not is_system(path.name)]
    out: list[Question] = []
    for subtask in subtasks:
        images = _first(subtask / "images", subtask)
        for path in sorted(_first(subtask / "questions_answers_YN", subtask).glob("*.txt")):
            if not is_system(path.name):
                out += _mme_questions(path, subtask.name, _image(images, path.stem, path), brief)
    return _not_empty(out, folder, "one folder per subtask with images and text files, as MME is distributed")


def _mme_questions(path: Path, subtask: str, image: Path, brief: bool) -> Iterator[Question]:
    """The questions in one text file of MME."""
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        text, tab, answer = line.rpartition("\t")
        if not tab or answer.strip().casefold() not in ("yes", "no"):
            raise ValueError(f"{path}:{number}: want a question, a tab, and Yes or No; got {line[:80]!r}")
        if brief:
            text = text.replace("Please answer yes or no.", "").strip() + BRIEF
        yield _question(
            text, image, subtask, (answer.strip().casefold(),), "yes_no", f"{subtask}/{path.stem}"
        )


def mmbench(path: Path, *, circular: bool = True) -> list[Question]:
    """MMBench (arXiv 2307.06281): a TSV of index, question, hint, A to D, answer, category, image (base64).

    Args:
        circular: Ask each question with every rotation of its options; it counts as right if all rotations
            are answered right (CircularEval, section 4.2 of the paper). In the published files, rows with the
            same index modulo 1,000,000 are one question and its rotations. A question without such rows is
            rotated here. False asks each question once.
    """
    rows = list(_table(path, ("index", "question", "A", "B", "answer", "image")))
    copies = Counter(_first_index(row["index"]) for row in rows)
    coded_images = {row["index"]: row["image"] for row in rows}
    out: list[Question] = []
    for number, row in enumerate(rows, 2):
        group = _first_index(row["index"])
        if not circular and group != row["index"]:
            continue
        options = [row[letter] for letter in LETTERS if row.get(letter) and row[letter] != "nan"]
        right = LETTERS.find(row["answer"])
        where = f"{path}:{number}"
        if not 0 <= right < len(options):
            raise ValueError(
                f"{where}: answer is {row['answer']!r}, want a letter of its {len(options)} options"
            )
        # a rotation may refer to another row's image by its index
        image = _decoded(coded_images.get(row["image"], row["image"]), where)
        hint = row.get("hint") or ""
        head = f"{hint}\n{row['question']}" if hint and hint != "nan" else row["question"]
        for turn in range(len(options) if circular and copies[group] == 1 else 1):
            rotated = [options[(i + turn) % len(options)] for i in range(len(options))]
            accepted = (LETTERS[(right - turn) % len(options)], options[right])
            text = f"{head}\n{_listed(rotated)}{LETTER}"
            out.append(_question(text, image, row.get("category") or "all", accepted, "choice", group))
    return _not_empty(out, path, "rows of MMBench's TSV")


def _decoded(coded: str, where: str) -> bytes:
    try:
        return base64.b64decode(coded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{where}: its image is not base64 ({error})") from error


def gqa(path: Path, images: Path, *, brief: bool = True) -> list[Question]:
    """GQA (arXiv 1902.09506): a JSON of question id -> {question, answer, imageId, types}.

    Images are `images/<imageId>.jpg`. The kind of a question is `types.detailed`; without it,
    `types.structural`.

    Args:
        brief: Ask for a single word with LLaVA-1.5's sentence.
    """
    out = []
    for key, row in _json(path).items():
        _need(row, ("question", "answer", "imageId"), f"{path}: {key}")
        types = row.get("types") or {}
        kind = types.get("detailed") or types.get("structural") or "all"
        image = _image(images, str(row["imageId"]), path)
        out.append(_question(row["question"] + BRIEF * brief, image, kind, (str(row["answer"]),), "exact"))
    return _not_empty(out, path, "questions as GQA's val_balanced_questions.json has them")


def scienceqa(path: Path, images: Path, *, split: str = "test") -> list[Question]:
    """ScienceQA (arXiv 2209.09513): problems.json and `images/<split>/<id>/image.png`.

    Problems without an image are left out. The kind of a question is its subject.
    """
    out = []
    for key, row in _json(path).items():
        _need(row, ("question", "choices", "answer", "split"), f"{path}: {key}")
        if row["split"] != split or not row.get("image"):
            continue
        if not 0 <= row["answer"] < len(row["choices"]):
            raise ValueError(
                f"{path}: {key}: answer is {row['answer']}, want the index of one of {len(row['choices'])} "
                "choices"
            )
        image = images / split / key / row["image"]
        if not image.is_file():
            raise FileNotFoundError(f"{path}: {key}: its image {image} is not there")
        head = f"{row['hint']}\n{row['question']}" if row.get("hint") else row["question"]
        accepted = (LETTERS[row["answer"]], row["choices"][row["answer"]])
        text = f"{head}\n{_listed(row['choices'])}{LETTER}"
        out.append(_question(text, image, row.get("subject") or "all", accepted, "choice"))
    return _not_empty(out, path, f"problems with images of split {split!r}")


def pope(path: Path, images: Path, *, brief: bool = True) -> list[Question]:
    """POPE (arXiv 2305.10355): one JSON per line, {question_id, image, text, label}; label is yes or no.

    Args:
        brief: Ask for a single word with LLaVA-1.5's sentence.
    """
    out = []
    for number, line in enumerate(_text(path).splitlines() if path.exists() else [], 1):
        row = parse_json(line, f"{path}:{number}", dict, "a question of POPE")
        _need(row, ("image", "text", "label"), f"{path}:{number}")
        if row["label"] not in ("yes", "no"):
            raise ValueError(f"{path}:{number}: label is {row['label']!r}, want yes or no")
        image = _image(images, Path(row["image"]).stem, path)
        out.append(_question(row["text"] + BRIEF * brief, image, "existence", (row["label"],), "yes_no"))
    return _not_empty(out, path, "lines as POPE's coco_pope_*.json have them")


def _question(
    text: str, image: EncodedImage, kind: str, accepted: tuple[str, ...], rule: str, group: str = ""
) -> Question:
    return Question(text, (image,), kind, "utility", accepted, rule, group)


def _first_index(index: str) -> str:
    """The index of a question in MMBench, from the index of the question or of one of its rotations.

    >>> _first_index("241"), _first_index("2000241"), _first_index("a1")
    ('241', '241', 'a1')
    """
    return str(int(index) % 10**6) if index.isdigit() else index


def _listed(options: Sequence[str]) -> str:
    """The options with their letters, one per line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def _not_empty(questions: list[Question], where: Path, wanted: str) -> list[Question]:
    if not questions:
        raise ValueError(f"{where}: no questions in it; want {wanted}")
    return questions


def _entries(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder ({what})")
    return sorted(folder.iterdir())


def _first(*folders: Path) -> Path:
    return next(folder for folder in folders if folder.is_dir())


def _image(folder: Path, stem: str, source: Path) -> Path:
    """The image named `stem` in `folder`. `source` is the file with the question, for the message."""
    for ending in _IMAGES:
        if (path := folder / f"{stem}{ending}").is_file():
            return path
    raise FileNotFoundError(
        f"{source}: asks about {folder / stem}, and no {', '.join(_IMAGES)} of that name is there"
    )


def _text(path: Path) -> str:
    """The content of a text file. Raises OSError if it is none: to read a pipe might never end."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, or not a regular file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})") from error


def _json(path: Path) -> dict[str, Any]:
    return parse_json(_text(path).encode(), str(path), dict, "questions by id")


def _table(path: Path, wanted: Sequence[str]) -> Iterator[dict[str, str]]:
    csv.field_size_limit(1 << 28)  # an image is one field
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there, or not a regular file")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        _need(dict.fromkeys(rows.fieldnames or (), 1), wanted, str(path))
        yield from rows


def _need(row: dict[str, Any], keys: Sequence[str], where: str) -> None:
    if missing := [key for key in keys if key not in row]:
        raise ValueError(f"{where}: no {', '.join(missing)}; has {', '.join(list(row)[:8])}")

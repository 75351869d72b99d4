"""Read benchmarks of people for vision-language models: MLLMU-Bench, CLEAR and MLUBench.

The files are read as they are published, from a folder that the user downloaded. Each reader returns
part ("forget", "retain", ...) -> questions, each with the person or thing that it is about.
`muwa.eval.answers.people` scores the answers. docs/people.md says where each layout was looked up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from muwa.data.hub_tables import Row, image_bytes, read, shards, text_of
from muwa.data.samples import fold
from muwa.fingerprint import EncodedImage
from muwa.json_files import read_json
from muwa.types.questions import Question

# The ends of MLLMU-Bench's own prompts.
LETTER = "\nJust give ONE letter representing the answer directly."
BLANK = "\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
SENTENCE = "\nAnswer the question based on your trained knowledge in one sentence accurately in ENGLISH."
SENTENCE_TEXT = "\nAnswer the question based on your trained knowledge in one sentence in ENGLISH."

WHO = "What is the name of the person in this image?"
CAPTION = "Can you give a description of the image?"  # one of CLEAR's nine


@dataclass(frozen=True)
class About:
    """A question, and the person or thing that it is about: questions about one are not independent."""

    who: str
    question: Question


Parts = dict[str, list[About]]


def mllmu_bench(folder: Path, *, percent: int) -> Parts:
    """MLLMU-Bench (arXiv 2410.22108): folders `forget_<p>`, `retain_<100-p>`, `Test_Set`, `Retain_Set`.

    Each holds parquet files with one row per person. The columns ID, image (in Test_Set: images),
    Classification_Task, Generation_Task and Mask_Task are read.

    Args:
        percent: Which people are to be forgotten: 5, 10 or 15 per cent of them.

    Returns:
        "forget", "test" (the same people in other images and wordings), "retain", and "celebrity" (real
        people). Kinds: "choice", "cloze" and "generation"; "..._text" is asked without an image.

    Raises:
        FileNotFoundError, ValueError: A folder, column or field is missing. Says where.
    """
    setting = "eval.people.mllmu"
    if percent not in (5, 10, 15):
        raise ValueError(f"{setting}_percent: got {percent}, want 5, 10 or 15")
    parts: Parts = {}
    forgotten: list[str] = []
    for part, name in (
        ("forget", f"forget_{percent}"),
        ("test", "Test_Set"),
        ("retain", f"retain_{100 - percent}"),
        ("celebrity", "Retain_Set"),
    ):
        rows = read(
            shards(folder, f"{name}/*.parquet", setting),
            ("ID", "Classification_Task", "Generation_Task", "Mask_Task"),
            optional=("image", "images"),
            only='"ID" in (select unnest(?))' if part == "test" else "true",
            values=[forgotten] if part == "test" else [],
        )
        if part == "forget":
            forgotten = [text_of(row, "ID", where) for where, row in rows]
        role = {"forget": "forget", "test": "forget", "retain": "retain"}.get(part, "utility")
        parts[part] = [one for where, row in rows for one in _mllmu_person(row, where, role)]
        _not_empty(parts[part], folder / name)
    return parts


def _mllmu_person(row: Mapping[str, Any], where: str, role: str) -> Iterator[About]:
    """All questions about one person of MLLMU-Bench."""
    who = text_of(row, "ID", where)
    images = row.get("images") or [row.get("image")]
    image = image_bytes(images[0], where)

    def question(text: str, kind: str, with_image: bool, accepted: Sequence[str], rule: str) -> About:
        shown = (image,) if with_image else ()
        name = kind if with_image else f"{kind}_text"
        return About(who, Question(text, shown, name, role, tuple(accepted), rule))

    choices = _field(row, "Classification_Task", where)
    for key in ("Image_Textual_Questions", "Pure_Text_Questions"):
        for one in _field(choices, key, f"{where}: Classification_Task") or ():
            at = f"{where}: {key}"
            options = {k: v for k, v in _field(one, "Options", at).items() if v is not None}
            right = _field(one, "Correct_Answer", at)
            if right not in options:
                raise ValueError(f"{at}: Correct_Answer is {right!r}, want one of {', '.join(options)}")
            text = "\n".join([_field(one, "Question", at), *(f"{k}: {v}" for k, v in options.items())])
            with_image = key.startswith("Image")
            yield question(text + LETTER, "choice", with_image, (right, options[right]), "choice")
    for column, kind, rule in (
        ("Mask_Task", "cloze", "contains"),
        ("Generation_Task", "generation", "rouge_l"),
    ):
        for one in _field(row, column, where) or ():
            at = f"{where}: {column}"
            text, with_image = _field(one, "Question", at), _field(one, "Type", at) == "Image_Textual"
            if kind == "cloze":
                text = text.replace("__", "[Blank]") + BLANK
            else:
                text += SENTENCE if with_image else SENTENCE_TEXT
            yield question(text, kind, with_image, (_field(one, "Ground_Truth", at),), rule)


def clear(folder: Path, *, percent: int) -> Parts:
    """CLEAR (arXiv 2410.18057): folders `forget<p>_perturbed`, `retain_perturbed` and others.

    Read are the columns image, caption, name and perturbed_names of the first two; question and answer of
    `forget<p>+tofu` and `retain<100-p>+tofu`, in rows without an image; image, answer and options (and
    question) of `real_faces` and `real_world`.

    Args:
        percent: Which people are to be forgotten: 1, 5 or 10 per cent of them.

    Returns:
        "forget", "retain", "real_faces" and "real_world". Kinds: "name" (who is it?), "choice" (the same with
        the perturbed names as options), "caption" (describe the image), and "answer_text" (TOFU's questions
        about the person, without an image).

    Raises:
        FileNotFoundError, ValueError: A folder or column is missing. Says where.
    """
    setting = "eval.people.clear"
    if percent not in (1, 5, 10):
        raise ValueError(f"{setting}_percent: got {percent}, want 1, 5 or 10")
    parts: Parts = {}
    for part, seen, told in (
        ("forget", f"forget{percent:02d}_perturbed", f"forget{percent:02d}+tofu"),
        ("retain", "retain_perturbed", f"retain{100 - percent}+tofu"),
    ):
        faces = read(
            shards(folder, f"{seen}/*.parquet", setting), ("image", "caption", "name", "perturbed_names")
        )
        parts[part] = [one for where, row in faces for one in _clear_face(row, where, part)]
        files = shards(folder, f"{told}/*.parquet", setting)
        texts = read(files, ("question", "answer"), only="image is null")
        parts[part] += [_clear_text(row, where, part) for where, row in texts]
        _not_empty(parts[part], folder / seen)
    for part in ("real_faces", "real_world"):
        real = read(
            shards(folder, f"{part}/*.parquet", setting),
            ("image", "answer", "options"),
            optional=("question",),
        )
        parts[part] = [_clear_real(row, where) for where, row in real]
        _not_empty(parts[part], folder / part)
    return parts


def _clear_face(row: Mapping[str, Any], where: str, role: str) -> Iterator[About]:
    image, name = (image_bytes(row["image"], where),), text_of(row, "name", where)
    caption = text_of(row, "caption", where)
    yield About(name, Question(WHO, image, "name", role, (name,), "name"))
    yield About(name, _choice(WHO, image, name, row["perturbed_names"], role, where))
    yield About(name, Question(CAPTION, image, "caption", role, (caption,), "rouge_l_recall"))


def _clear_text(row: Mapping[str, Any], where: str, role: str) -> About:
    """One of TOFU's questions. It names the person, but no column does: each counts by itself."""
    text, answer = text_of(row, "question", where), text_of(row, "answer", where)
    return About(where, Question(text, (), "answer_text", role, (answer,), "rouge_l_recall"))


def _clear_real(row: Mapping[str, Any], where: str) -> About:
    image, answer = (image_bytes(row["image"], where),), text_of(row, "answer", where)
    text = row.get("question") or WHO
    return About(answer, _choice(text, image, answer, row["options"], "utility", where))


def _choice(
    text: str, image: tuple[EncodedImage, ...], answer: str, wrong: Any, role: str, where: str
) -> Question:
    """A question with the right answer among the options, which stand in alphabetical order."""
    options = sorted({answer, *(one for one in wrong or () if one)})
    if len(options) < 2:
        raise ValueError(f"{where}: got {len(options)} options with the answer, want at least 2")
    letters = [chr(ord("A") + i) for i in range(len(options))]
    listed = "\n".join(f"{letter}: {option}" for letter, option in zip(letters, options, strict=True))
    accepted = (letters[options.index(answer)], answer)
    return Question(f"{text}\n{listed}{LETTER}", image, "choice", role, accepted, "choice")


def mlubench(folder: Path, images: Path, *, task: str) -> Parts:
    """MLUBench (arXiv 2606.12809): `Tasks/<task>/<task>_forget.json` and `..._retain.json`.

    A file is a list of {id, image, conversations}, in LLaVA's format: a question that begins with "<image>",
    and its answer. `image` is a path such as downloaded_images/Personage/Elon_Musk/image_1.jpg; its folder is
    what the question is about.

    Args:
        images: The folder with `downloaded_images`.
        task: "TaskA" to "TaskD". MLUBench forgets them one after the other.

    Returns:
        "forget" and "retain". Kinds: "name" (the answer is the name), "answer" (any other).

    Raises:
        FileNotFoundError, ValueError: A file, an image or a field is missing. Says where.
    """
    parts: Parts = {}
    for part in ("forget", "retain"):
        name = f"{task[:1].lower()}{task[1:]}_{part}.json"
        path = folder / "Tasks" / task / name
        if not path.is_file():
            raise FileNotFoundError(
                f"eval.people.mlubench: no {path}; want the folder MLUBench with Tasks/{task}/{name}"
            )
        parts[part] = [_conversation(row, where, images, part) for where, row in _json_rows(path)]
        _not_empty(parts[part], path)
    return parts


def _conversation(row: Mapping[str, Any], where: str, images: Path, role: str) -> About:
    """One entry of MLUBench."""
    said = _field(row, "conversations", where)
    if [one.get("from") for one in said] != ["human", "gpt"]:
        raise ValueError(f"{where}: conversations are {said!r:.80}, want one of human, then one of gpt")
    text, answer = (_field(one, "value", where).strip() for one in said)
    place = PurePosixPath(_field(row, "image", where))
    path = images / place
    if not path.is_file():
        raise FileNotFoundError(f"{where}: asks about {path}, which is not there")
    who = place.parent.name.replace("_", " ")
    kind, rule = ("name", "name") if fold(answer) == fold(who) else ("answer", "rouge_l")
    return About(who, Question(text.removeprefix("<image>").strip(), (path,), kind, role, (answer,), rule))


def _json_rows(path: Path) -> list[Row]:
    rows = read_json(path, list, "conversations")
    return [(f"{path}: entry {i}", row) for i, row in enumerate(rows, 1)]


def _field(row: Any, name: str, where: str) -> Any:
    """A field of a struct or object. Raises ValueError if it is not there."""
    if not isinstance(row, Mapping) or row.get(name) is None:
        there = isinstance(row, Mapping)
        if there and name in row:
            raise ValueError(f"{where}: {name} is empty")
        has = ", ".join(list(row)[:8]) if there else repr(row)[:60]
        raise ValueError(f"{where}: no {name}; has {has or 'nothing'}")
    return row[name]


def _not_empty(questions: Sequence[About], where: Path) -> None:
    if not questions:
        raise ValueError(f"{where}: no questions in it")

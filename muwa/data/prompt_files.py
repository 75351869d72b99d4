"""Read prompt files, with the column names of published ones: I2P, UnlearnDiffAtk, HUB, COCO captions."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muwa.json_files import parse_json
from muwa.types.data import Broken
from muwa.types.ranges import Text

MINIATURE = Path(__file__).parent.parent / "miniature" / "prompts.csv"  # "miniature" stands for it
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
FROM_FILE = "file"  # `Columns.concept`: the name of the file is the concept

# What is read -> the columns that hold it in published files; the first that a file has is taken.
PUBLISHED: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "adv_prompt", "text", "caption", "Original"),
    "seed": ("sd_seed", "evaluation_seed", "seed"),
    "guidance": ("sd_guidance_scale", "evaluation_guidance", "guidance_scale", "guidance"),
    "concept": ("concept", "categories", "category", "class", "artist"),
}


@dataclass(frozen=True)
class Columns:
    """The columns of a prompt file. None takes the first of `PUBLISHED` that the file has.

    Args:
        prompt: The text.
        seed: The seed of the initial noise, an integer from 0 on.
        guidance: The weight of classifier-free guidance.
        concept: What the prompt is about; several are separated by commas. "file" takes the name of the file
            instead, without its ending and with spaces for `_`. So does None if the file has no such column.
    """

    prompt: Text | None
    seed: Text | None
    guidance: Text | None
    concept: Text | None


@dataclass(frozen=True)
class FileRow:
    """A prompt as its file has it; fields as in `muwa.types.data.PromptRow`."""

    text: str
    concepts: tuple[str, ...]
    seed: int | None
    guidance: float | None


def prompt_files(given: str | Sequence[str]) -> list[Path]:
    """The files that are given, and those with one of `ENDINGS` in folders that are given, in order.

    "miniature" is the file that muwa ships.

    Raises:
        FileNotFoundError: A file is missing, or a folder has none.
        ValueError: Nothing is given, or a file has another ending.
    """
    paths: list[Path] = []
    for one in [given] if isinstance(given, str) else given:
        path = MINIATURE if one == "miniature" else Path(one)
        if path.is_dir():
            found = sorted(inner for inner in path.iterdir() if inner.suffix.lower() in ENDINGS)
            if not found:
                raise FileNotFoundError(f"{path}: no prompt file in it; want {', '.join(ENDINGS)}")
            paths += found
        elif not path.is_file():
            raise FileNotFoundError(f"{path}: no such prompt file; want {', '.join(ENDINGS)}, or a folder")
        elif path.suffix.lower() not in ENDINGS:
            raise ValueError(f"{path}: got the ending {path.suffix!r}, want one of {', '.join(ENDINGS)}")
        else:
            paths.append(path)
    if not paths:
        raise ValueError("task.file: no prompt file was given")
    return list(dict.fromkeys(paths))


def read_prompts(
    paths: Sequence[Path], columns: Columns, *, lines: bool
) -> tuple[list[FileRow], list[Broken]]:
    """(The rows of all files, each text with each seed once; the rows that cannot be used.)

    Args:
        lines: Whether each line of a file is a prompt, without header and quotes, as in HUB's files. A .txt
            file is always read so.

    Raises:
        ValueError: A file cannot be read, or lacks a column; names both.
    """
    rows: dict[tuple[str, int | None], FileRow] = {}
    broken: list[Broken] = []
    for path in paths:
        stem = path.stem.replace("_", " ")
        if lines or path.suffix.lower() == ".txt":
            table: Iterable[Mapping[str, Any]] = ({"prompt": line} for line in _text(path).splitlines())
            chosen = Columns("prompt", None, None, None)
        else:
            header, table = _table(path)
            chosen = _columns(path, header, columns)
        for number, values in enumerate(table, 1):
            try:
                row = _row(values, chosen, stem)
            except ValueError as error:
                broken.append(Broken(f"{path.name}: row {number}", str(error)))
                continue
            rows.setdefault((row.text, row.seed), row)
    return list(rows.values()), broken


def _columns(path: Path, header: Sequence[str], columns: Columns) -> Columns:
    """The columns to read of a file with this header; None where it has none.

    Raises:
        ValueError: A column that was named, or that of the prompts, is missing.
    """
    found: dict[str, str | None] = {}
    for what, published in PUBLISHED.items():
        named: str | None = getattr(columns, what)
        if named is not None and named not in header and not (what == "concept" and named == FROM_FILE):
            raise ValueError(
                f"{path}: no column {named!r} (task.columns.{what}); it has {', '.join(header) or 'none'}"
            )
        found[what] = named or next((one for one in published if one in header), None)
    if found["prompt"] is None:
        raise ValueError(
            f"{path}: no column of prompts; it has {', '.join(header)[:200] or 'none'}, want one of "
            f"{', '.join(PUBLISHED['prompt'])}. Name it with task.columns.prompt, or read a prompt a line "
            "with task.lines=true"
        )
    return Columns(**found)


def _row(values: Mapping[str, Any], columns: Columns, stem: str) -> FileRow:
    """One row. Raises ValueError if its text is empty or its seed or guidance is not what it should be."""
    text = " ".join(str(values[columns.prompt or ""] or "").split())
    if not text:
        raise ValueError("the prompt is empty")
    seed = guidance = None
    if columns.seed and not _empty(values[columns.seed]):
        value = _number(values[columns.seed], columns.seed)
        if value < 0 or value != int(value):
            raise ValueError(f"{columns.seed} is {values[columns.seed]!r}, want an integer from 0 on")
        seed = int(value)
    if columns.guidance and not _empty(values[columns.guidance]):
        guidance = _number(values[columns.guidance], columns.guidance)
        if guidance <= 0:
            raise ValueError(f"{columns.guidance} is {values[columns.guidance]!r}, want a number above 0")
    concepts: tuple[str, ...] = (stem,)
    if columns.concept and columns.concept != FROM_FILE:
        each = [one.strip() for one in str(values[columns.concept] or "").split(",")]
        concepts = tuple(dict.fromkeys(one for one in each if one))
    return FileRow(text, concepts, seed, guidance)


def _empty(value: object) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column} is {value!r}, want a number")
    return number


def _table(path: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    """(Names of the columns, the rows) of a file, by its ending."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        return _parquet(path)
    if ending == ".jsonl":
        return _jsonl(path)
    text = _text(path)
    reader = csv.reader(text.splitlines(keepends=True), delimiter="\t" if ending == ".tsv" else ",")
    header = next(reader, [])
    return header, (dict(zip(header, row + [""] * len(header), strict=False)) for row in reader if row)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start})") from error


def _jsonl(path: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    rows: list[Mapping[str, Any]] = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}: line {number}", dict, '{"prompt": ...}')
        rows.append({key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in row.items()})
    header = list(dict.fromkeys(key for row in rows for key in row))
    return header, ({key: row.get(key) for key in header} for row in rows)


def _parquet(path: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    from muwa.data import parquet  # DuckDB, which other files do without

    where = str(path).replace("'", "''")
    try:
        header = [name for name, *_ in parquet.rows(f"describe select * from read_parquet('{where}')")]
        rows = parquet.rows(f"select * from read_parquet('{where}')")
    except parquet.Error as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0]}; want parquet") from error
    plain = (
        [", ".join(map(str, value)) if isinstance(value, list) else value for value in row] for row in rows
    )
    return header, (dict(zip(header, row, strict=True)) for row in plain)

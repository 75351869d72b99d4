"""Read the parquet files of a data set that was downloaded from a hub: one folder or prefix per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.data import parquet
from muwa.data.samples import check_image

_QUOTE = "'"
Row = tuple[str, dict[str, Any]]  # where it stands ("FILE: row 3"), column -> value


def shards(folder: Path, pattern: str, setting: str) -> list[Path]:
    """The parquet files of one split, in order.

    Args:
        pattern: Relative to `folder`: "forget_5/*.parquet".
        setting: The setting that gave the folder, for the message.

    Raises:
        FileNotFoundError: There is no such file. The message lists what the folder has.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{setting}: no folder {folder}; give the path of your download, or null")
    if files := sorted(folder.glob(pattern)):
        return files
    has = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise FileNotFoundError(f"{setting}: {folder} has no {pattern}; it has {has}")


def columns(files: Sequence[Path]) -> tuple[str, ...]:
    """The names of the columns of these files.

    Raises:
        ValueError: A file is no parquet.
    """
    try:
        found = parquet.rows(f"select column_name from (describe select * from {parquet.source(files)})")
    except parquet.Error as error:
        raise ValueError(f"{files[0]}: not a parquet file ({str(error).splitlines()[0]})") from error
    return tuple(name for (name,) in found if name not in ("filename", "file_row_number"))


def read(
    files: Sequence[Path],
    wanted: Sequence[str],
    *,
    optional: Sequence[str] = (),
    only: str = "true",
    values: Sequence[Any] = (),
    limit: int | None = None,
) -> list[Row]:
    """Rows of these files, in order.

    Args:
        wanted: The columns to read.
        optional: Columns to read if the files have them.
        only: A condition in SQL that a row must meet. It may name any column.
        values: The values of the condition's question marks.
        limit: At most so many rows, spread evenly; None reads all.

    Raises:
        ValueError: A column is missing, or a file cannot be read. Names the file and what it has.
    """
    has = columns(files)
    if missing := [name for name in wanted if name not in has]:
        raise ValueError(f"{files[0]}: no column {', '.join(missing)}; has {', '.join(has)}")
    names = (*wanted, *(name for name in optional if name in has))
    listed = ", ".join(f'"{name}"' for name in names)
    source = f"from {parquet.source(files)} where {only}"
    try:
        places = parquet.rows(f"select filename, file_row_number {source} order by 1, 2", values)
        if limit is not None and limit < len(places):
            places = [places[i * len(places) // limit] for i in range(limit)]
            chosen = ", ".join(f"('{file.replace(_QUOTE, _QUOTE * 2)}', {row})" for file, row in places)
            source += f" and (filename, file_row_number) in ({chosen})"
        found = parquet.rows(f"select filename, file_row_number, {listed} {source} order by 1, 2", values)
    except parquet.Error as error:
        raise ValueError(f"{files[0]}: cannot be read ({str(error).splitlines()[0]})") from error
    return [(f"{file}: row {number + 1}", dict(zip(names, row, strict=True))) for file, number, *row in found]


def image_bytes(value: Any, where: str) -> bytes:
    """The encoded bytes of a cell with an image: a struct of `bytes` and `path`, as `datasets` writes it.

    Raises:
        ValueError: The cell holds no bytes, or they are no image.
    """
    raw = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(raw, bytes) or not raw:
        raise ValueError(f"{where}: its image has no bytes; want an image with its bytes in the table")
    try:
        check_image(raw)
    except ValueError as error:
        raise ValueError(f"{where}: its image cannot be opened ({error})") from error
    return raw


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """The text of a cell.

    Raises:
        ValueError: It is empty or no text.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {name} is {value!r}, want a text")
    return value.strip()

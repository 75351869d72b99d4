"""Read the text files of data sets, whatever wrote them: encodings, line ends, and separators of tables."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable
from pathlib import Path

from muwa.runtime.notices import notice

# UTF-32 first: its mark starts with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = "\t,;"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without line ends (Unix, Windows or old Mac).

    A byte-order mark gives the encoding. Without one it is UTF-8, or UTF-16 if half of the start's even
    or odd bytes are 0. Other files are read as Windows-1252, of which latin-1 is a part; a notice
    says so.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no text in any of these encodings.
    """
    raw = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), None) or _unmarked(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"{path}: not a text file in {encoding} ({error})") from error
        text = raw.decode("cp1252", "replace")
        notice(f"{path} is not UTF-8; read as Windows-1252 (latin-1). Save it as UTF-8 if names look wrong")
    if "\0" in text:
        raise ValueError(f"{path}: not a text file; there are zero bytes in it")
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")


def read_table(path: Path, is_key: Callable[[str], bool]) -> list[tuple[int, list[str]]]:
    """The rows of a table that are not empty: (line number, its cells without spaces around them).

    Cells are separated by tabs, commas or semicolons, and may be quoted, if a cell of one of the first lines
    is then a key. Else a row has two cells: what stands before the first white space, and the rest.

    Args:
        is_key: Whether a cell is what each row is about, such as the name of an image.

    Raises:
        OSError, ValueError: As in `read_lines`.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    for separator in _SEPARATORS:
        some = [_cells(line, separator) for _, line in lines[:5] if separator in line]
        if any(is_key(cell) for cells in some for cell in cells):
            return [(number, _cells(line, separator)) for number, line in lines]
    return [(number, line.split(maxsplit=1)) for number, line in lines]


def _cells(line: str, separator: str) -> list[str]:
    """The cells of a line. A quote that is not closed closes at the end of the line."""
    if separator not in line:
        return [line.strip().strip('"')]
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]


def _unmarked(raw: bytes) -> str:
    """The encoding of a text without a byte-order mark."""
    start = raw[:64]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if start[first::2].count(0) > len(start) / 4:  # of the higher bytes, more than half
            return encoding
    return "utf-8"

"""Find the pairs of a name before any image is downloaded: a query over LAION's metadata parquet.

The rows that are found are a url list as img2dataset takes it. Who wants the pictures of one person downloads
those, not a hundred shards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np

from muwa.data.samples import fold, match_names

MEMORY = "160MB"  # what DuckDB may use
AT_ONCE = 10_000  # rows that are taken from DuckDB at a time
_STRANGE = r"[^\x00-\x7F]"  # a character that is not ASCII
_ONE_SIGN = {
    "ae",
    "oe",
    "ss",
    "ff",
    "fi",
    "fl",
    "st",
    "ij",
    "dz",
    "lj",
    "nj",
}  # letters with a sign of their own


@dataclass(frozen=True)
class Columns:
    """The names of the columns of the metadata.

    Args:
        url: Of the image; LAION-400M has "URL".
        caption: LAION-400M has "TEXT".
    """

    url: str = "URL"
    caption: str = "TEXT"


def find(
    files: Sequence[str], spellings: Mapping[str, Sequence[str]], columns: Columns, *, limit: int | None
) -> Iterator[tuple[str, str, str]]:
    """(Name, url, caption) of the rows whose captions contain a name (`muwa.data.samples.match_names`).

    DuckDB keeps the rows that may contain one (`pattern`); these are then matched exactly.

    Args:
        files: Parquet files: paths, globs, http(s):// or s3:// addresses.
        spellings: Name -> its spellings.
        limit: Stop when every name has so many rows; None: no limit.

    Raises:
        ValueError: A file is missing, cannot be read, or lacks a column. The message says which.
    """
    left = dict.fromkeys(spellings, float("inf") if limit is None else limit)
    with duckdb.connect(config={"memory_limit": MEMORY}) as database:
        query = f"select {_quoted(columns.url)}, {_quoted(columns.caption)} from read_parquet(?) " + (
            f"where regexp_matches({_quoted(columns.caption)}, ?)"
        )
        try:
            rows = database.execute(
                query, [list(files), pattern([one for some in spellings.values() for one in some])]
            )
            while some_rows := rows.fetchmany(AT_ONCE):
                for url, caption in some_rows:
                    for name, words in spellings.items():
                        if left[name] > 0 and match_names(caption, words):
                            left[name] -= 1
                            yield name, url, caption
                if not any(count > 0 for count in left.values()):
                    return
        except duckdb.Error as error:
            raise ValueError(_why(files, columns, error)) from error


def pattern(spellings: Sequence[str]) -> str:
    """A regular expression that every caption with one of the spellings matches, and few others.

    It is plain enough for any SQL engine: RE2 (DuckDB, BigQuery), Java (Spark, Trino). A letter may have an
    accent or be written as another sign: characters that are not ASCII may stand for it, or follow it.
    """
    return "(?i)(?:" + "|".join(_loose(one) for one in spellings if fold(one)) + ")"


def _loose(spelling: str) -> str:
    """The pattern of one spelling: its words with anything but letters and digits between them."""
    return r"[\W_]+".join("".join(_letters(word)) for word in fold(spelling).split())


def _letters(word: str) -> Iterator[str]:
    """The patterns of a word's letters; of two letters together where one sign may stand for both."""
    i = 0
    while i < len(word):
        two = word[i : i + 2] in _ONE_SIGN
        each = [
            f"(?:{re.escape(letter)}{_STRANGE}*|{_STRANGE}+)" if letter.isascii() else f"{_STRANGE}+"
            for letter in word[i : i + 1 + two]
        ]
        yield f"(?:{''.join(each)}|{_STRANGE}+)" if two else each[0]
        i += 1 + two


def write_list(
    path: Path, rows: Iterator[tuple[str, str, str]], columns: Columns = Columns()
) -> dict[str, int]:
    """Write the rows of `find` as the parquet that img2dataset reads; returns how many each name has.

    A url that several names have is written once. The file appears when it is complete.
    """
    counts: dict[str, int] = {}
    pairs: dict[str, str] = {}
    for name, url, caption in rows:
        counts[name] = counts.get(name, 0) + 1
        pairs.setdefault(url, caption)
    draft = path.with_name(f"{path.name}.draft")
    with duckdb.connect() as database:
        texts = {"url": list(pairs), "caption": list(pairs.values())}
        database.register("rows", {name: np.array(some, dtype=object) for name, some in texts.items()})
        names = f"url::varchar as {_quoted(columns.url)}, caption::varchar as {_quoted(columns.caption)}"
        target = str(draft).replace("'", "''")
        database.execute(f"copy (select {names} from rows) to '{target}' (format parquet)")
    os.replace(draft, path)
    return counts


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _why(files: Sequence[str], columns: Columns, error: Exception) -> str:
    """The message for metadata that cannot be read."""
    first = str(error).splitlines()[0]
    hint = ""
    if any("://" in file for file in files):
        hint = (
            " Remote files need DuckDB's extension httpfs, which is installed by "
            "python -c \"import duckdb; duckdb.sql('install httpfs')\""
        )
    return (
        f"{', '.join(files)}: {first}; want parquet with the columns {columns.url} and {columns.caption} "
        f"(--url-col, --caption-col).{hint}"
    )

"""Find the pairs of a name before any image is downloaded: a query over LAION's metadata parquet.

The rows that are found are a url list as img2dataset takes it. To get images of one person, download only
those, not a hundred shards.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from muwa.data import parquet
from muwa.data.addresses import hide, is_remote
from muwa.data.samples import fold, match_names

AT_ONCE = 10_000  # rows that are taken from DuckDB at a time
_STRANGE = r"[^\x00-\x7F]"  # a character that is not ASCII
# The parts of a folded word: letters that one character can stand for (æ, ß, ﬁ), one letter, a run of others.
_PARTS = re.compile(r"ff[il]|ae|oe|ss|ff|fi|fl|st|ij|dz|lj|nj|[\x00-\x7F]|[^\x00-\x7F]+")


@dataclass(frozen=True)
class Columns:
    """The names of the columns of the metadata.

    Args:
        url: Of the image; LAION-400M has "URL".
        caption: LAION-400M has "TEXT".
    """

    url: str = "URL"
    caption: str = "TEXT"


Rows = Callable[[Sequence[str], str, Columns], Iterator[tuple[str, str]]]


def find(
    files: Sequence[str],
    spellings: Mapping[str, Sequence[str]],
    columns: Columns,
    *,
    limit: int | None,
    rows: Rows,
) -> Iterator[tuple[str, str, str]]:
    """(Name, url, caption) of the rows whose captions contain a name (`muwa.data.samples.match_names`).

    An engine keeps the rows that may contain one (`pattern`); these are then matched exactly. A url counts
    once for each name.

    Args:
        files: Parquet files: paths, globs, http(s):// or s3:// addresses.
        spellings: Name -> its spellings.
        limit: Stop when every name has so many rows; None: no limit.
        rows: The engine: `duckdb_rows` or `muwa.data.spark.spark_rows`.

    Raises:
        ValueError: A file is missing, cannot be read, or lacks a column. The message says which.
    """
    for file in files:
        for path in map(Path, [] if is_remote(file) else glob.glob(file) or [file]):
            if path.exists() and not path.is_file():  # to read a pipe might never end
                raise ValueError(f"{path}: not a regular file, want a parquet file")
    left = dict.fromkeys(spellings, float("inf") if limit is None else limit)
    seen: set[tuple[str, str]] = set()
    wanted = pattern([one for some in spellings.values() for one in some])
    for url, caption in rows(files, wanted, columns):
        for name, words in spellings.items():
            if left[name] > 0 and (name, url) not in seen and match_names(caption, words):
                left[name] -= 1
                seen.add((name, url))
                yield name, url, caption
        if not any(count > 0 for count in left.values()):
            return


def duckdb_rows(files: Sequence[str], wanted: str, columns: Columns) -> Iterator[tuple[str, str]]:
    """(Url, caption) of the rows whose captions match a regular expression, found by DuckDB."""
    url, caption = _quoted(columns.url), _quoted(columns.caption)
    listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
    query = (
        f"select {url}, {caption} from read_parquet([{listed}], hive_partitioning = false) "
        f"where {url} is not null and regexp_matches({caption}, ?)"
    )
    try:
        with parquet.database() as database:
            found = database.execute(query, [wanted])
            while some := found.fetchmany(AT_ONCE):
                yield from some
    except parquet.Error as error:
        raise unreadable(files, columns, error) from error


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
    """The patterns of a word's letters; of several letters together where one sign may stand for them."""
    for part in _PARTS.findall(word):
        if part[0].isascii():
            each = "".join(f"(?:{letter}{_STRANGE}*|{_STRANGE}+)" for letter in part)
            yield f"(?:{each}|{_STRANGE}+)" if len(part) > 1 else each
        else:
            yield f"{_STRANGE}+"  # a run of letters that are not ASCII; case may change their number


def write_list(
    path: Path, rows: Iterator[tuple[str, str, str]], columns: Columns = Columns()
) -> dict[str, int]:
    """Write the rows of `find` as the parquet that img2dataset reads; returns how many each name has.

    A url that several names have is written once. Without any row no file is written.
    """
    counts: dict[str, int] = {}
    pairs: dict[str, str] = {}
    for name, url, caption in rows:
        counts[name] = counts.get(name, 0) + 1
        pairs.setdefault(url, caption)
    if pairs:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write(path, {columns.url: list(pairs), columns.caption: list(pairs.values())})
    return counts


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def unreadable(files: Sequence[str], columns: Columns, error: Exception) -> ValueError:
    """The error for metadata that cannot be read."""
    hint = ""
    if any(file.startswith(("http", "s3://")) for file in files):
        hint = (
            " Remote files need DuckDB's extension httpfs, which is installed by "
            "python -c \"import duckdb; duckdb.sql('install httpfs')\""
        )
    return ValueError(
        f"{', '.join(map(hide, files))}: {hide(str(error).splitlines()[0])}; want parquet with the "
        f"columns {columns.url} and {columns.caption} (--url-col, --caption-col).{hint}"
    )

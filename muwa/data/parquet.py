"""Read and write parquet with DuckDB."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from muwa.drafts import new_file

# What one query may use. A million captions take a tenth; row groups of a million rows take most of it.
LIMITS: dict[str, Any] = {"memory_limit": "1GB", "threads": min(4, os.cpu_count() or 1)}
Error = duckdb.Error


@contextmanager
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, within `LIMITS`. All of a process are one: to open another takes 20 ms."""
    with _opened().cursor() as cursor:
        yield cursor


@functools.cache
def _opened() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config=LIMITS)


def source(files: Sequence[Path | str]) -> str:
    """The rows of some files, for `from`; with their file name and their place in it.

    Names of folders such as `size=256` are not taken for columns.
    """
    names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    return f"read_parquet([{names}], filename = true, file_row_number = true, hive_partitioning = false)"


def rows(query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query. Raises `Error` if a file cannot be read."""
    with database() as connection:
        return connection.execute(query, list(values)).fetchall()


def write(path: Path, columns: Mapping[str, Sequence[Any]], *, integers: Collection[str] = ()) -> None:
    """Write columns of texts (None: null), and of `integers`. The file appears when it is complete."""
    arrays = {
        name: np.array(some, dtype=np.int64 if name in integers else object) for name, some in columns.items()
    }
    types = {name: "bigint" if name in integers else "varchar" for name in columns}
    selected = ", ".join(f'"{name}"::{types[name]} as "{name}"' for name in columns)
    with new_file(path) as draft, database() as connection:
        target = str(draft).replace("'", "''")
        connection.register("written", arrays)
        connection.execute(
            f"copy (select {selected} from written) to '{target}' (format parquet, compression zstd)"
        )

"""What is known about image files: the SHA-256 of their bytes, and whether they can be decoded.

A file is read and decoded once. What was found holds as long as its path, size and time of change are the
same: in memory for the runs of one process, and in a manifest for later ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
from filelock import FileLock

from muwa.data.samples import decode
from muwa.fingerprint import DIGESTS, Stamp, stamp

FAULTS: dict[Stamp, str | None] = {}  # why a file cannot be decoded; None: it can


def fault(image: bytes | Path) -> str | None:
    """Why an image cannot be decoded, or None."""
    if isinstance(image, bytes):
        return _decoding_fault(image)
    try:
        file = stamp(image)
        if file not in FAULTS:
            content = image.read_bytes()
            DIGESTS[file] = hashlib.sha256(content).hexdigest()
            FAULTS[file] = _decoding_fault(content)
        return FAULTS[file]
    except OSError as error:
        return str(error)


def _decoding_fault(content: bytes) -> str | None:
    try:
        decode(content)
    except (ValueError, OSError) as error:
        return str(error)
    return None


@contextmanager
def manifest(path: Path) -> Iterator[None]:
    """Take what is known about files from a manifest, and at the end add to it what was found.

    Args:
        path: A parquet with columns path, size, time, sha256 and fault. It is made if it is not there, and
            made anew if it cannot be read. The folder is made only if there is something to write.
    """
    kept = _read(path)
    for file, (digest, why) in kept.items():
        DIGESTS.setdefault(file, digest)
        FAULTS.setdefault(file, why)
    before = len(FAULTS)
    yield
    if len(FAULTS) > before:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            _write(path, _read(path) | {file: (DIGESTS[file], why) for file, why in FAULTS.items()})


def _read(path: Path) -> dict[Stamp, tuple[str, str | None]]:
    """The content of a manifest; nothing if it is not there or damaged."""
    if not path.is_file():
        return {}
    try:
        query = "select path, size, time, sha256, fault from read_parquet(?)"
        rows = duckdb.execute(query, [str(path)]).fetchall()
    except duckdb.Error:
        return {}
    return {(name, size, time): (digest, why) for name, size, time, digest, why in rows}


def _write(path: Path, known: dict[Stamp, tuple[str, str | None]]) -> None:
    """Write a manifest; it appears when it is complete. Of a file that changed, the last state is kept."""
    latest = {file[0]: (file, *what) for file, what in sorted(known.items(), key=lambda item: item[0][2])}
    rows = {
        "path": np.array(list(latest), dtype=object),
        "size": np.array([file[1] for file, _, _ in latest.values()], dtype=np.int64),
        "time": np.array([file[2] for file, _, _ in latest.values()], dtype=np.int64),
        "sha256": np.array([digest for _, digest, _ in latest.values()], dtype=object),
        "fault": np.array([why for _, _, why in latest.values()], dtype=object),
    }
    draft = path.with_name(f"{path.name}.draft")
    with duckdb.connect() as database:
        database.register("rows", rows)
        columns = "path::varchar as path, size, time, sha256::varchar as sha256, fault::varchar as fault"
        target = str(draft).replace("'", "''")
        database.execute(
            f"copy (select {columns} from rows) to '{target}' (format parquet, compression zstd)"
        )
    os.replace(draft, path)

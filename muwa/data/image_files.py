"""A cache of facts about image files: the SHA-256 of their bytes, and whether they can be decoded.

A file is read and decoded once. What was found holds as long as its path, size and time of change are the
same: in memory for the runs of one process, and in a manifest for later ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from muwa.data import parquet
from muwa.data.samples import decode
from muwa.fingerprint import DIGESTS, EncodedImage, Stamp, read_image, stamp

RULES = 2  # raise it when `decode` takes or refuses other images: older manifests are then made anew
FAULTS: dict[Stamp, str | None] = {}  # why a file cannot be decoded; None if it can


def fault(image: EncodedImage) -> str | None:
    """Why an image cannot be decoded, or None."""
    if not isinstance(image, Path):
        return _decoding_fault(read_image(image))
    try:
        file = stamp(image)
        if file not in FAULTS:
            content = read_image(image)
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
        path: A parquet with columns path, size, time, sha256, fault and rules (`RULES`). It is made if it is
            not there, and made anew if it cannot be read or has other rules. The folder is made only if there
            is something to write.
    """
    kept = _read(path)
    for file, (digest, why) in kept.items():
        DIGESTS.setdefault(file, digest)
        FAULTS.setdefault(file, why)
    before = len(FAULTS)
    try:
        yield
    finally:
        if len(FAULTS) > before:
            with suppress(OSError):  # a folder that cannot be written loses no run
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{path}.lock"):
                    _write(path, _read(path) | {file: (DIGESTS[file], why) for file, why in FAULTS.items()})


def _read(path: Path) -> dict[Stamp, tuple[str, str | None]]:
    """The content of a manifest; nothing if it is not there or damaged."""
    if not path.is_file():
        return {}
    try:
        query = f"select path, size, time, sha256, fault from {parquet.source([path])} where rules = {RULES}"
        rows = parquet.rows(query)
    except parquet.Error:
        return {}
    return {(name, size, time): (digest, why) for name, size, time, digest, why in rows}


def _write(path: Path, known: dict[Stamp, tuple[str, str | None]]) -> None:
    """Write a manifest; it appears when it is complete. Of a file that changed, the last state is kept."""
    latest = {file[0]: (file, *what) for file, what in sorted(known.items(), key=lambda item: item[0][2])}
    named = {name: what for name, what in latest.items() if name.isprintable()}  # no bytes that are no text
    parquet.write(
        path,
        {
            "path": list(named),
            "size": [file[1] for file, _, _ in named.values()],
            "time": [file[2] for file, _, _ in named.values()],
            "sha256": [digest for _, digest, _ in named.values()],
            "fault": [why for _, _, why in named.values()],
            "rules": [RULES] * len(named),
        },
        integers=("size", "time", "rules"),
    )

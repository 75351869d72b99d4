"""The samples of a local tar by their places in the file: headers are read, images are skipped."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

BLOCK = 512  # bytes of a header; files are padded to a multiple
Place = tuple[int, int]  # of a file in a tar: its first byte and its size


@dataclass
class Sample:
    """The files of one sample: those that follow each other under one key, as webdataset groups them.

    Args:
        key: The path up to the first dot of its last part.
        files: Ending ("jpg", "txt", in lower case) -> place.
        repeated: An ending that several files have, or None.
    """

    key: str
    files: dict[str, Place] = field(default_factory=dict)
    repeated: str | None = None


def is_plain(path: Path) -> bool:
    """Whether a tar is not compressed, so that its files have places."""
    with path.open("rb") as file:
        return file.read(2) not in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")


def samples(path: Path) -> Iterator[Sample]:
    """The samples of an uncompressed tar, in order. No file in it is read.

    Raises:
        tarfile.TarError: A header is damaged, or the tar is cut short. Samples yielded before are valid.
    """
    current: Sample | None = None
    for place, name in _members(path):
        folder, _, last = name.rpartition("/")
        stem, dot, ending = last.partition(".")
        if not stem or not dot or (last.startswith("__") and last.endswith("__")):
            continue  # hidden files (macOS writes ._x.jpg beside x.jpg), no ending, or webdataset's own
        key = f"{folder}/{stem}" if folder else stem
        if current is None or key != current.key:
            if current is not None:
                yield current
            current = Sample(key)
        if current.files.setdefault(ending.lower(), place) != place:
            current.repeated = ending.lower()
    if current is not None:
        yield current


def _members(path: Path) -> Iterator[tuple[Place, str]]:
    """(Place, name) of each file in a tar.

    Python's tarfile takes 20 microseconds a header; a LAION shard has 30,000. So plain headers are read here,
    and tarfile goes on from the first header of another kind (long names, sparse files).
    """
    with path.open("rb") as file:
        length = path.stat().st_size
        position = 0
        while any(header := os.pread(file.fileno(), BLOCK, position)):
            size = _size(header, position)
            kind, first = header[156:157], position + BLOCK
            extended = os.pread(file.fileno(), size or 0, first) if kind == b"x" else b""
            if (
                size is None
                or kind not in (b"0", b"\0", b"5", b"x")
                or any(word in extended for word in (b" path=", b" size=", b"GNU.sparse"))
            ):
                file.seek(position)
                yield from _members_by_tarfile(file)
                return
            if first + size > length:
                raise tarfile.ReadError("unexpected end of data")
            if kind in (b"0", b"\0"):
                name, folder = (
                    _text(header[:100]),
                    _text(header[345:500]) if header[257:262] == b"ustar" else "",
                )
                yield (first, size), f"{folder}/{name}" if folder else name
            position = first + -(-size // BLOCK) * BLOCK


def _members_by_tarfile(file: BinaryIO) -> Iterator[tuple[Place, str]]:
    """The same from the current position on, by Python's tarfile."""
    with tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if member.issparse():
                raise tarfile.ReadError(f"{member.name} is a sparse file; repack the tar without")
            if member.isreg():
                yield (member.offset_data, member.size), member.name
        end = tar.offset
    file.seek(end)
    if any(file.read(BLOCK)):  # tarfile mistakes a damaged header for the end of the archive
        raise tarfile.ReadError(f"damaged header at byte {end}")


def _size(header: bytes, position: int) -> int | None:
    """The size that a header gives; None if it is not in the usual notation. Raises ReadError if damaged."""
    if len(header) < BLOCK:
        raise tarfile.ReadError("unexpected end of data")
    try:
        if sum(header) - sum(header[148:156]) + 8 * 32 != int(_text(header[148:156]).strip() or "0", 8):
            raise ValueError
        return None if header[124] & 0x80 else int(_text(header[124:136]).strip() or "0", 8)
    except ValueError as error:
        raise tarfile.ReadError(f"damaged header at byte {position}") from error


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def read(path: Path, places: Sequence[Place]) -> Iterator[bytes]:
    """The bytes of some files of a tar, in the order given."""
    with path.open("rb") as file:
        for first, size in places:
            file.seek(first)
            yield file.read(size)


def is_closed(path: Path) -> bool:
    """Whether a tar ends with two blocks of zeros. One that was cut short does not."""
    if path.stat().st_size < 2 * BLOCK:
        return False
    with path.open("rb") as file:
        file.seek(-2 * BLOCK, os.SEEK_END)
        return not any(file.read())

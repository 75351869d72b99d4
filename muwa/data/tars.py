"""The files of a tar: by their places in a local one, whose images are skipped, or from a stream."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from muwa.data.expansion import HEADERS, UNBOUNDED, Expanded, Readable

BLOCK = 512  # bytes of a header; files are padded to a multiple
Place = tuple[int, int]  # of a file in a tar: its first byte and its size
T = TypeVar("T")


@dataclass
class Member(Generic[T]):
    """A file of a tar.

    Args:
        name: Its path in the tar.
        size: In bytes.
        content: Its bytes, or its place in the tar.
        held: How many bytes of it are in memory.
    """

    name: str
    size: int
    content: T
    held: int = 0


def is_plain(path: Path) -> bool:
    """Whether a tar is not compressed, so that its files have places."""
    with path.open("rb") as file:
        return file.read(2) not in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5")


def members(path: Path) -> Iterator[Member[Place]]:
    """The files of an uncompressed tar, in order. None of them is read.

    Raises:
        tarfile.TarError: A header is damaged, or the tar is cut short. Files given before are sound.
    """
    for place, name in _members(path):
        yield Member(name, place[1], place)


def streamed(stream: Expanded, reads: Callable[[str, int], bool]) -> Iterator[Member[bytes]]:
    """The files of a tar that is read through, in order.

    Args:
        stream: The bytes of the tar.
        reads: Whether a file (name, size) is read; the content of the others is empty.

    Raises:
        tarfile.TarError, EOFError, OSError: As `members`; also what `stream` raises.
    """
    with tarfile.open(fileobj=stream, mode="r|", errors="replace") as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # tarfile keeps every header otherwise
            stream.allowance = member.size + HEADERS
            _refuse_sparse(member)
            if member.isreg():
                file = tar.extractfile(member) if reads(member.name, member.size) else None
                content = file.read() if file is not None else b""
                yield Member(member.name, member.size, content, len(content))
        stream.allowance = UNBOUNDED
        _refuse_more(tar.fileobj)


def _refuse_more(file: Readable) -> None:
    """Raise ReadError unless only zeros are left: tarfile takes a damaged header for the end of the tar."""
    while more := file.read(1 << 20):
        if more.strip(b"\0"):
            raise tarfile.ReadError(
                "something follows the end of the tar: a damaged header, or a second tar (join tars with "
                "`tar -Af`, not with `cat`)"
            )


def _refuse_sparse(member: tarfile.TarInfo) -> None:
    if member.issparse():
        raise tarfile.ReadError(f"{member.name} is a sparse file; repack the tar without")


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
            if kind == b"x" and (size or 0) > HEADERS:
                raise tarfile.ReadError(f"a header of {size:,} bytes at byte {position}")
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
        file.seek(position)
        _refuse_more(file)


def _members_by_tarfile(file: BinaryIO) -> Iterator[tuple[Place, str]]:
    """The same from the current position on, by Python's tarfile."""
    with tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            _refuse_sparse(member)
            if member.isreg():
                yield (member.offset_data, member.size), member.name
        end = tar.offset
    file.seek(end)
    _refuse_more(file)


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

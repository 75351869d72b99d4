"""Read a shard's bytes from a stream, compressed or not, within bounds.

A compressed file of a few kilobytes can hold terabytes of zeros. So a shard may expand to `FLOOR` bytes and
`RATIO` times its compressed size, and no part of it is held in memory but the file that is being read.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from typing import Any, Protocol

FLOOR = 1 << 26  # bytes that every shard may expand to
RATIO = 100  # beyond: so many times the compressed bytes; images are compressed already and expand to about 1
HEADERS = 1 << 24  # bytes of headers between two files; longer ones are damage or an attack
UNBOUNDED = 1 << 62
ZSTD = b"\x28\xb5\x2f\xfd"


class Readable(Protocol):
    """What a shard is read from."""

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class _Counted:
    """A stream that counts what was read from it, and can be looked into."""

    def __init__(self, stream: Readable):
        self._stream, self._ahead, self.total = stream, b"", 0

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (more := self._stream.read(size - len(self._ahead))):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = -1) -> bytes:
        ahead = self._ahead if size < 0 else self._ahead[:size]
        self._ahead = self._ahead[len(ahead) :]
        found = ahead or self._stream.read(size)
        self.total += len(found)
        return found

    def seekable(self) -> bool:
        return False


def _opened(raw: _Counted, head: bytes) -> Readable:
    """What the stream expands to, by its first bytes; the stream itself if it is not compressed."""
    file: Any = raw
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file, mode="rb")
    if head.startswith(b"BZ"):
        return bz2.BZ2File(file, "rb")
    return lzma.LZMAFile(file, "rb") if head.startswith(b"\xfd7") else raw


class Expanded:
    """The bytes of a tar, expanded if it is compressed with gzip, bzip2 or xz.

    Attributes:
        allowance: The bytes that may be read until the next file begins; the reader of the tar sets it.

    Raises:
        OSError: More is read than the bounds allow, or the shard is compressed with zstd.
    """

    def __init__(self, stream: Readable):
        self._raw = _Counted(stream)
        head = self._raw.peek(4)
        if head == ZSTD:
            raise OSError(
                "compressed with zstd, which Python cannot read; expand it (`zstd -d FILE.tar.zst`) or give "
                "the command that does: dataset.shards='pipe:zstd -dc FILE.tar.zst'"
            )
        self._file = _opened(self._raw, head)
        self.is_compressed = self._file is not self._raw
        self._total, self._tail = 0, b""
        self.allowance = HEADERS

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, and at most a megabyte."""
        found = self._file.read(min(size, 1 << 20) if size >= 0 else 1 << 20)
        self._total += len(found)
        self.allowance -= len(found)
        self._tail = (self._tail + found[-1024:])[-1024:]
        if self.is_compressed and self._total > FLOOR + RATIO * self._raw.total:
            raise OSError(
                f"expands to more than {RATIO} times its size ({self._raw.total:,} bytes gave "
                f"{self._total:,}): no shard of images does. Expand it yourself (`gunzip`) if you trust it"
            )
        if self.allowance < 0:
            raise OSError(f"its headers are longer than {HEADERS:,} bytes: it is damaged, or no shard")
        return found

    def finish(self) -> None:
        """Read what follows the tar's end, so that checksums and commands can report their failure."""
        self.allowance = UNBOUNDED
        while self.read(1 << 20):
            pass

    @property
    def is_closed(self) -> bool:
        """Whether the bytes read so far end with the tar's two blocks of zeros."""
        return len(self._tail) == 1024 and not any(self._tail)

"""Fingerprints: SHA-256 digests of content. The cache, patches and provenance rely on them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Content(ABC):
    """An object that its content identifies: with equal fingerprints, later stages give equal results."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content, without names of folders or hosts and without dates."""


def digest(parts: Iterable[str | bytes | memoryview]) -> str:
    """SHA-256 (hex) of a sequence of parts.

    The length of each part enters too, so ("ab", "c") and ("a", "bc") differ.
    """
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "little"))
        total.update(raw)
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of the bytes of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class FileSlice:
    """A part of a file, such as an image in a tar: `size` bytes from `first` on. It is read when needed."""

    path: Path
    first: int
    size: int

    def read_bytes(self) -> bytes:
        """The bytes."""
        with self.path.open("rb") as file:
            file.seek(self.first)
            return file.read(self.size)


EncodedImage = bytes | Path | FileSlice


def read_image(image: EncodedImage) -> bytes:
    """The encoded bytes of one image, which is given as bytes, as a file or as a part of one.

    Raises:
        OSError: There is no such file, or it is a pipe, a socket or a device: to read it might never end.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Path) and not stat.S_ISREG(image.stat().st_mode):
        raise OSError(f"not a regular file: {image}")
    return image.read_bytes()


Stamp = tuple[str, int, int]  # the absolute path of a file, its size, its time of change in nanoseconds
DIGESTS: dict[Stamp, str] = {}  # SHA-256 (hex) of the image files that this process has read


def stamp(path: Path) -> Stamp:
    """What tells whether a file changed since it was read last, without reading it again."""
    found = path.stat()
    return str(path.absolute()), found.st_size, found.st_mtime_ns


def image_digest(image: EncodedImage) -> str:
    """SHA-256 (hex) of the encoded bytes of one image.

    A file is read again only if its size or time changed since `DIGESTS` got it.
    """
    if not isinstance(image, Path):
        return hashlib.sha256(read_image(image)).hexdigest()
    file = stamp(image)
    if file not in DIGESTS:
        DIGESTS[file] = hashlib.sha256(read_image(image)).hexdigest()
    return DIGESTS[file]


@functools.singledispatch
def fingerprint(x: object) -> str:
    """SHA-256 (hex) of the content of `x`.

    Supported are `Content`, dataclasses, plain values, bytes, sequences, mappings, tensors, named functions
    and partials of these. There is no fallback to `repr` or pickle.

    Raises:
        TypeError: `x` is of another kind.
    """
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
        return digest([type(x).__qualname__, fingerprint(fields)])
    torch = sys.modules.get("torch")  # a tensor cannot be there before torch is
    if torch is not None and isinstance(x, torch.Tensor):
        return _of_tensor(x)
    raise TypeError(f"cannot fingerprint {type(x).__name__}: subclass muwa.fingerprint.Content")


@fingerprint.register
def _(x: Content) -> str:
    return x.fingerprint


@fingerprint.register(str)
@fingerprint.register(int)
@fingerprint.register(float)
@fingerprint.register(type(None))
def _(x: object) -> str:
    return digest([type(x).__name__, repr(x)])


@fingerprint.register
def _(x: bytes) -> str:
    return digest(["bytes", x])


@fingerprint.register(list)
@fingerprint.register(tuple)
def _(x: Sequence[object]) -> str:
    return digest(["sequence", *map(fingerprint, x)])


@fingerprint.register
def _(x: Mapping) -> str:
    entries = sorted((fingerprint(key), fingerprint(value)) for key, value in x.items())
    return digest(["mapping", *(part for entry in entries for part in entry)])


@fingerprint.register
def _(x: functools.partial) -> str:
    return digest(["partial", fingerprint(x.func), fingerprint(list(x.args)), fingerprint(x.keywords)])


@fingerprint.register(type(fingerprint))
def _(x: Callable[..., object]) -> str:
    if "<" in x.__qualname__:
        raise TypeError(
            f"cannot fingerprint {x.__qualname__}: a lambda or inner function has no name to go by"
        )
    return digest(["function", x.__module__, x.__qualname__])


def _of_tensor(x: Any) -> str:
    """SHA-256 (hex) of a tensor: its type, its shape and the bytes of its elements in order."""
    elements = x.detach().cpu().contiguous().flatten()
    raw = memoryview(elements.view(sys.modules["torch"].uint8).numpy())  # no copy of the tensor
    return digest(["tensor", str(x.dtype), str(tuple(x.shape)), raw])

"""What a thing *is*, as a digest: the ground of the cache, of patches and of provenance."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor


class Content(ABC):
    """Something whose identity is its content: two equal fingerprints mean the same results downstream."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content; no name of a folder, date or host enters it."""


def digest(parts: Sequence[str | bytes]) -> str:
    """SHA-256 (hex) of a sequence of parts, each length-prefixed so that ("ab", "c") and ("a", "bc") differ."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "little"))
        total.update(raw)
    return total.hexdigest()


def read_image(image: bytes | Path) -> bytes:
    """The encoded bytes of one picture, read from its file where it is one."""
    return image if isinstance(image, bytes) else image.read_bytes()


@functools.singledispatch
def fingerprint(x: object) -> str:
    """SHA-256 of what `x` *is*.

    Raises:
        TypeError: It is of a kind that has no content fingerprint; there is no fallback to repr or pickle.
    """
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = {f.name: getattr(x, f.name) for f in dataclasses.fields(x)}
        return digest([type(x).__qualname__, fingerprint(fields)])
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
    return digest(
        ["mapping", *(part for row in sorted((fingerprint(k), fingerprint(v)) for k, v in x.items()) for part in row)]
    )


@fingerprint.register
def _(x: Tensor) -> str:
    raw = x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return digest(["tensor", str(x.dtype), str(tuple(x.shape)), raw])


@fingerprint.register
def _(x: functools.partial) -> str:
    return digest(["partial", fingerprint(x.func), fingerprint(list(x.args)), fingerprint(x.keywords)])


@fingerprint.register(type(fingerprint))
def _(x: Callable[..., object]) -> str:
    if "<" in x.__qualname__:
        raise TypeError(f"cannot fingerprint {x.__qualname__}: a lambda or inner function has no name to go by")
    return digest(["function", x.__module__, x.__qualname__])

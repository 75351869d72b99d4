"""How records that hold images or weights print: their size, never their bytes."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any


class _Short(reprlib.Repr):
    """Containers by their first elements and length; bytes, tensors and sets of samples by their size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxother, self.maxstring = 4, 200, 80
        self.shown = 2  # elements of a container

    def repr1(self, x: Any, level: int) -> str:
        """The text of one value; `level` counts down with each container around it."""
        if isinstance(x, bytes | bytearray):
            return f"<{len(x):,} bytes>"
        if isinstance(x, Path):
            return repr(str(x))
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return f"<{type(x).__name__} {tuple(x.shape)} {x.dtype}>"
        if isinstance(x, Mapping):
            first = [(self.repr1(key, level - 1), self.repr1(x[key], level - 1)) for key in self._first(x)]
            return "{" + self._listed([f"{key}: {value}" for key, value in first], len(x)) + "}"
        if isinstance(x, tuple | list):
            inner = self._listed([self.repr1(one, level - 1) for one in self._first(x)], len(x))
            return f"[{inner}]" if isinstance(x, list) else f"({inner}{',' * (len(x) == 1)})"
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            return f"<{type(x).__name__} of {len(x):,}>" if isinstance(x, Sized) else repr(x)
        return super().repr1(x, level)

    def _first(self, values: Any) -> list[Any]:
        return [one for one, _ in zip(values, range(self.shown), strict=False)]

    def _listed(self, shown: list[str], count: int) -> str:
        return ", ".join([*shown, *([f"... {count:,} in all"] if count > len(shown) else [])])


_SHORT = _Short()


def short_repr(record: Any) -> str:
    """The `__repr__` of a dataclass whose fields may be large.

    >>> @dataclasses.dataclass
    ... class Pair:
    ...     keys: tuple[str, ...]
    ...     image: bytes
    ...     __repr__ = short_repr
    >>> Pair(("a", "b", "c", "d"), bytes(12345))
    Pair(keys=('a', 'b', ... 4 in all), image=<12,345 bytes>)
    """
    shown = (
        f"{field.name}={_SHORT.repr1(getattr(record, field.name), _SHORT.maxlevel)}"
        for field in dataclasses.fields(record)
        if field.repr
    )
    return f"{type(record).__name__}({', '.join(shown)})"


def model_repr(model: Any, weights: Iterable[Any], changed: Sequence[str]) -> str:
    """The `__repr__` of a model: where it came from, how large it is, and which weights an edit changed."""
    size = sum(weight.numel() for weight in weights)
    edits = ", ".join([*changed[:2], *([f"... {len(changed)} in all"] if len(changed) > 2 else [])])
    return f"<{type(model).__name__} {model.source}, {size:,} weights{edits and f'; edited: {edits}'}>"

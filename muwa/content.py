"""What a thing *is*, as a digest: the ground of the cache, of patches and of provenance."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path


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

"""The code part of a cache key."""

from __future__ import annotations

import functools
from pathlib import Path

from muwa.fingerprint import digest


@functools.cache
def code_fingerprint() -> str:
    """SHA-256 of the sources of muwa."""
    root = Path(__file__).parent.parent
    sources = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    return digest([part for name in sources for part in (name, (root / name).read_bytes())])

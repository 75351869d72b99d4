"""The mark of a cache: a file in its root, so that `muwa.cache clear` removes nothing anywhere else."""

from __future__ import annotations

from pathlib import Path

MARK = "muwa-cache.txt"


def mark(root: Path) -> None:
    """Mark a folder as a cache."""
    if not (root / MARK).is_file():
        (root / MARK).write_text("A cache of muwa: `python -m muwa.cache ls` shows what is in it.\n")


def checked(root: Path) -> Path:
    """`root`, if it is marked as a cache.

    Raises:
        ValueError: It is not.
    """
    if not (root / MARK).is_file():
        raise ValueError(f"{root}: not a cache of muwa (no {MARK} in it); want the folder of paths.cache")
    return root

"""The miniature as a data set: drawn on first use, then read like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muwa.data.tasks import Dataset
from muwa.miniature import data
from muwa.progress import track


def dataset(
    *, root: str, name: str, shards: str | Sequence[str], retain: str | Sequence[str], curated: str, forget: str | None,
    celeba: str, identities: str | None, frequent: str | None, images: str, max_broken: float, progress: bool = False,
) -> Dataset:  # fmt: skip
    """The miniature as a `Dataset`, drawn to `root`/world first if it is not there. Arguments as in `Dataset`."""
    world = Path(root) / "world"
    if not data.is_written(world):
        for _ in track(data.write(world), "drawing the world", data.SHARDS + 2, show=progress):
            pass
    return Dataset(name, shards, retain, curated, forget, celeba, identities, frequent, images, max_broken)

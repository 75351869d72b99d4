"""The miniature as a data set: drawn on first use, then read like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muwa.data.tasks import Dataset
from muwa.miniature import data
from muwa.runtime.progress import track


def dataset(root: str, *, progress: bool = False, **changed: Any) -> Dataset:
    """The miniature as a `Dataset`, drawn to `root`/world first if it is not there.

    Args:
        root: Folder to keep it in.
        changed: Fields of `Dataset` that are to differ from the world's own.

    Raises:
        TypeError: A keyword is no field of `Dataset`.
    """
    world = Path(root) / "world"
    own = {
        "name": "miniature", "shards": f"{world}/shards/{{00000..{data.SHARDS - 1:05d}}}.tar",
        "retain": f"{world}/shards/00000.tar", "curated": f"{root}/curated", "celeba": f"{world}/celeba",
        "images": f"{world}/objects", "canvas": f"{world}/canvas", "utility": 0.75, "utility_probe": 0.075,
    }  # fmt: skip
    found = Dataset(**{**own, **changed})
    if not data.is_written(world):
        for _ in track(data.write(world), "drawing the world", data.PARTS, show=progress):
            pass
    return found

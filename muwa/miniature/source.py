"""The miniature as a data set (muwa/conf/dataset/miniature.yaml): drawn on first use, then read as others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from muwa.data.dataset import Dataset
from muwa.miniature import data
from muwa.runtime.progress import track
from muwa.settings.signatures import check_values
from muwa.types.ranges import FieldsOf, Text

_Settings = Annotated[Any, FieldsOf("muwa.data.dataset.Dataset")]


def dataset(
    root: Text, *, progress: bool, **settings: Annotated[Any, FieldsOf("muwa.data.dataset.Dataset")]
) -> Dataset:
    """The `Dataset` of these settings. The miniature is drawn to `root`/world if it is not there.

    Args:
        progress: Whether to show a progress bar while drawing.
        settings: The fields of `Dataset`.

    Raises:
        TypeError: A setting is not a field of `Dataset`, or a field is missing.
        ValueError: A setting has another type, or is out of range; or `root` is a drawn miniature itself.
    """
    found = Dataset(**settings)
    check_values("dataset", Dataset, settings)
    world = Path(root) / "world"
    if not data.is_written(world):
        if data.is_written(Path(root)):
            advice = (
                f"dataset.root={Path(root).parent}"
                if Path(root).name == "world"
                else "a folder with it as world/"
            )
            raise ValueError(
                f"dataset.root: got {root}, the miniature itself; want the folder around it: {advice}"
            )
        for _ in track(data.write(world), "drawing images", data.PARTS, show=progress):
            pass
    return found

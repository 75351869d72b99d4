"""The miniature as a data set (muwa/conf/dataset/miniature.yaml): drawn on first use, then read as others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

from muwa.data.dataset import Dataset
from muwa.data.samples import UnknownNameError
from muwa.drafts import check_writable
from muwa.miniature import data
from muwa.runtime.progress import track
from muwa.settings.signatures import check_values
from muwa.types.ranges import FieldsOf, Text


@dataclass(frozen=True)
class MiniatureDataset(Dataset):
    """The miniature. `prepare` draws it to `root`/world if it is not there.

    Args:
        root: The folder with the miniature as world/.
        progress: Whether to show a progress bar while drawing.
    """

    root: str
    progress: bool = field(compare=False)

    def prepare(self, check: Callable[[Dataset], None]) -> None:
        """Check the task on the miniature's names, draw it, and check all.

        Raises:
            UnknownNameError: The name to forget is none of the miniature's; nothing was drawn then.
        """
        world = Path(self.root) / "world"
        try:
            if not data.is_written(world):
                check_writable("dataset.root", Path(self.root))
                self._check_outline(check, world)
                drawn = track(data.write(world), "drawing images", data.PARTS, show=self.progress)
                for _ in drawn:
                    pass
            check(self)
        except UnknownNameError as error:
            raise UnknownNameError(
                f"{error} These are invented; for real ones choose dataset=laion_celeba or "
                "dataset=unlearncanvas."
            ) from error

    def _check_outline(self, check: Callable[[Dataset], None], world: Path) -> None:
        """Check the task on folders with the same names and empty files, which are there at once."""
        with tempfile.TemporaryDirectory() as folder:
            outline = Path(folder) / "world"
            data.write_outline(outline)
            settings = {one.name: getattr(self, one.name) for one in fields(Dataset)}
            try:
                check(Dataset(**_moved(settings, str(world), str(outline))))
            except UnknownNameError as error:
                raise UnknownNameError(str(error).replace(str(outline), str(world))) from error
            except (ValueError, OSError):
                return  # of what an outline does not have, perhaps: the drawn files are checked next


def _moved(value: Any, old: str, new: str) -> Any:
    """The settings of a data set with another folder in place of `old`."""
    if isinstance(value, dict):
        return {key: _moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_moved(inner, old, new) for inner in value]
    return value.replace(old, new) if isinstance(value, str) else value


def dataset(
    root: Text, *, progress: bool, **settings: Annotated[Any, FieldsOf("muwa.data.dataset.Dataset")]
) -> Dataset:
    """The miniature with these settings, which `MiniatureDataset.prepare` draws.

    Args:
        progress: Whether to show a progress bar while drawing.
        settings: The fields of `Dataset`.

    Raises:
        TypeError: A setting is not a field of `Dataset`, or a field is missing.
        ValueError: A setting has another type, or is out of range; or `root` is a drawn miniature itself.
    """
    found = MiniatureDataset(**settings, root=root, progress=progress)
    check_values("dataset", Dataset, settings)
    if not data.is_written(Path(root) / "world") and data.is_written(Path(root)):
        advice = (
            f"dataset.root={Path(root).parent}"
            if Path(root).name == "world"
            else "a folder with it as world/"
        )
        raise ValueError(
            f"dataset.root: got {root}, the miniature itself; want the folder around it: {advice}"
        )
    return found

"""Read a folder in UnlearnCanvas' layout: one folder per style, and in it one folder per class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PHOTOS = "Seed_Images"  # the folder of images without a style
PLAIN = "photo"  # what prompts call the style of these images
LAYOUT = "<style>/<class>/<image>.jpg, photographs under Seed_Images/, as UnlearnCanvas lays them out"
_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Canvas:
    """The content of the folder.

    Attributes:
        styles, classes: Names as in prompts ("van gogh"), in the order of sorted folders.
        files: (style, class) -> its images.
    """

    styles: tuple[str, ...]
    classes: tuple[str, ...]
    files: Mapping[tuple[str, str], tuple[Path, ...]]


def read_canvas(root: Path) -> Canvas:
    """List the images of the folder. No image is opened.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it. The message says what was found, and
            gives the layout.
        ValueError: A style has no images of a class that another style has.
    """
    folders = (
        sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if root.is_dir()
        else []
    )
    found: dict[tuple[str, str], tuple[Path, ...]] = {}
    for folder in folders:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            images = (path for path in inner.iterdir() if path.suffix.lower() in _ENDINGS)
            # by length first, so that 2.jpg comes before 10.jpg
            in_order = tuple(sorted(images, key=lambda path: (len(path.name), path.name)))
            if in_order:
                found[_name(folder.name), _name(inner.name)] = in_order
    if not found:
        content = sorted(path.name for path in root.iterdir())[:6] if root.is_dir() else "no such folder"
        raise FileNotFoundError(f"dataset.canvas={root}: found {content}; want {LAYOUT}")
    styles = tuple(dict.fromkeys(style for style, _ in found))
    classes = tuple(sorted({one for _, one in found}))
    if missing := [f"{style}/{one}" for style in styles for one in classes if (style, one) not in found]:
        raise ValueError(
            f"dataset.canvas={root}: no images in {', '.join(missing[:4])} ({len(missing)} missing); want "
            f"{LAYOUT}"
        )
    return Canvas(styles, classes, found)


def _name(folder: str) -> str:
    """The name of a folder's style or class as in prompts."""
    return PLAIN if folder == PHOTOS else folder.replace("_", " ").lower()

"""Read a folder in UnlearnCanvas' layout: one folder per style, and in it one folder per class."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from muwa.data.folders import content, listing
from muwa.data.samples import one_spelling
from muwa.runtime.notices import notice, some
from muwa.types.short import short_repr

PHOTOS = ("seed images", "seed image")  # the folder of images without a style, as it is called in some copies
PLAIN = "photo"  # what prompts call the style of these images
LAYOUT = "<style>/<class>/<image>.jpg, photographs under Seed_Images/, as UnlearnCanvas lays them out"


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

    __repr__ = short_repr


def read_canvas(root: Path) -> Canvas:
    """List the images of the folder. No image is opened. A notice says which images are left out.

    Folders whose names are equal after folding are one style or class. A folder that has no class in common
    with any other one is no style: it is left out if other folders have classes in common.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it. The message says what was found, and
            gives the layout.
        ValueError: A style has no images of a class that another style has.
    """
    found: dict[tuple[str, str], tuple[Path, ...]] = {}
    left_out: list[str] = []
    for folder, inner, images in _folders(root, left_out):
        key = (_name(folder), _name(inner))
        # by length first, so that 2.jpg comes before 10.jpg
        in_order = sorted(
            (root / folder / inner / image for image in images), key=lambda p: (len(p.name), p.name)
        )
        found[key] = (*found.get(key, ()), *in_order)
    found = _one_spelling(found)
    strangers = _strangers(found)
    left_out += [str(path.relative_to(root)) for key in found if key[0] in strangers for path in found[key]]
    found = {key: images for key, images in found.items() if key[0] not in strangers}
    if not found:
        raise FileNotFoundError(f"dataset.canvas={root}: found {content(root)}; want {LAYOUT}")
    if left_out:
        notice(
            f"dataset.canvas={root}: images left out, not in <style>/<class>/ or in a format that muwa does "
            f"not read: {len(left_out)} ({some(left_out)})"
        )
    styles = tuple(dict.fromkeys(style for style, _ in found))
    classes = tuple(sorted({one for _, one in found}))
    if missing := [f"{style}/{one}" for style in styles for one in classes if (style, one) not in found]:
        raise ValueError(
            f"dataset.canvas={root}: no images in {', '.join(missing[:4])} ({len(missing)} missing); want "
            f"{LAYOUT}"
        )
    return Canvas(styles, classes, found)


def _folders(root: Path, left_out: list[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(Style folder, class folder, its images) for each class folder with images.

    Images that are in no class folder, or deeper in one, are added to `left_out`.
    """
    top = listing(root) if root.is_dir() else None
    if top is None:
        return
    left_out += [*top.images, *top.other_images]
    for folder in top.folders:
        outer = listing(root / folder)
        left_out += [f"{folder}/{image}" for image in (*outer.images, *outer.other_images)]
        for inner in outer.folders:
            here = listing(root / folder / inner)
            left_out += [f"{folder}/{inner}/{image}" for image in here.other_images]
            for deeper in here.folders:
                images = listing(root / folder / inner / deeper).images
                left_out += [f"{folder}/{inner}/{deeper}/{image}" for image in images]
            if here.images:
                yield folder, inner, here.images


def _one_spelling(
    found: Mapping[tuple[str, str], tuple[Path, ...]],
) -> dict[tuple[str, str], tuple[Path, ...]]:
    """The same images, with one spelling of each style and each class."""
    styles = one_spelling([style for style, _ in found])
    classes = one_spelling([one for _, one in found])
    merged: dict[tuple[str, str], tuple[Path, ...]] = {}
    for (style, one), images in found.items():
        key = (styles[style], classes[one])
        merged[key] = (*merged.get(key, ()), *images)
    return merged


def _strangers(found: Mapping[tuple[str, str], object]) -> set[str]:
    """The styles that have no class in common with another style, if other styles have."""
    classes: dict[str, set[str]] = {}
    for style, one in found:
        classes.setdefault(style, set()).add(one)
    alone = {
        style
        for style, own in classes.items()
        if not any(own & others for other, others in classes.items() if other != style)
    }
    return alone if len(alone) < len(classes) else set()


def _name(folder: str) -> str:
    """The name of a folder's style or class as in prompts."""
    name = unicodedata.normalize("NFC", folder.replace("_", " ").lower())
    return PLAIN if name in PHOTOS else name

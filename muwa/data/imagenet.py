"""Read a folder in ImageNet's layout: one folder per class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muwa.data.labelled import decodable
from muwa.types.data import Broken, Classes, LabelledImages

_ENDINGS = {".jpg", ".jpeg", ".png", ".webp"}
IMAGENET_CLASSES = 1000
_WNID = re.compile(r"n\d{8}")
_NAME_FILES = ("LOC_synset_mapping.txt", "classnames.txt")
_LAYOUT = (
    "one folder per class: {root}/<class>/<image>.jpg "
    "(ImageNet: {root}/n01440764/ILSVRC2012_val_00000293.JPEG)"
)


def read_folder(
    root: Path, *, templates: Sequence[str], fraction: float, seed: int, max_broken: float
) -> tuple[LabelledImages, list[Broken]]:
    """The images of a folder, labelled by class.

    Args:
        templates: Zero-shot prompts for a class, with {}.
        fraction: Share of the images to take, at random by `seed`; 1 takes all.
        max_broken: Largest accepted share of broken images.

    Returns:
        (Images, with classes in the order of sorted folders; broken images). Folders with the same class name
        are one class, because a zero-shot classifier cannot tell them apart: open_clip has 998 names for
        ImageNet's 1,000 folders.

    Raises:
        FileNotFoundError: There is no such folder, or it has no class folders. The message says what was
            found, and gives the layout.
        ValueError: Class names are missing, or too many images are broken.
    """
    folders = class_folders(root)
    names = _class_names(root, [folder.name for folder in folders])
    classes = Classes(tuple(dict.fromkeys(names)), tuple(templates))
    rows = [
        (path, classes.names.index(name))
        for name, folder in zip(names, folders, strict=True)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _ENDINGS
    ]
    if not rows:
        raise FileNotFoundError(
            f"dataset.images={root}: {len(folders)} folders and no image; want {_LAYOUT.format(root=root)}"
        )
    if fraction < 1:
        order = np.random.default_rng(seed).permutation(len(rows))[: round(fraction * len(rows))]
        rows = [rows[i] for i in sorted(order.tolist())]
    keys = tuple(str(path.relative_to(root)) for path, _ in rows)
    images = LabelledImages(keys, tuple(path for path, _ in rows), tuple(label for _, label in rows), classes)
    return decodable(images, max_broken, str(root))


def class_names(root: Path) -> tuple[str, ...]:
    """The names of the folder's classes, without repetition. No image is opened.

    Raises:
        FileNotFoundError, ValueError: As in `read_folder`.
    """
    return tuple(dict.fromkeys(_class_names(root, [folder.name for folder in class_folders(root)])))


def class_folders(root: Path) -> list[Path]:
    """The folders of the classes, sorted. Raises FileNotFoundError if there is none."""
    folders = (
        sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if root.is_dir()
        else []
    )
    if not folders:
        loose = sum(path.suffix.lower() in _ENDINGS for path in root.iterdir()) if root.is_dir() else 0
        found = f"{loose} images and no class folder" if root.is_dir() else "no such folder"
        hint = (
            " Sort them by class first (ImageNet's devkit has the labels of its validation set)."
            if loose
            else ""
        )
        raise FileNotFoundError(f"dataset.images={root}: {found}; want {_LAYOUT.format(root=root)}.{hint}")
    return folders


def _class_names(root: Path, folders: list[str]) -> tuple[str, ...]:
    """The class name of each folder, in order: the folder's name, or the name for its WordNet id."""
    if not all(_WNID.fullmatch(folder) for folder in folders):
        return tuple(folder.replace("_", " ") for folder in folders)
    for path in (where / name for where in (root, root.parent) for name in _NAME_FILES):
        if path.is_file():
            rows = (line.strip().partition(" ") for line in path.read_text().splitlines())
            names = {wnid: text.split(",")[0].strip() for wnid, _, text in rows}
            if missing := [folder for folder in folders if folder not in names]:
                raise ValueError(
                    f"{path}: no name for {missing[0]} ({len(missing)} of {len(folders)} folders)"
                )
            return tuple(names[folder] for folder in folders)
    if len(folders) == IMAGENET_CLASSES:
        from open_clip import IMAGENET_CLASSNAMES  # imports torch

        return tuple(IMAGENET_CLASSNAMES)
    raise ValueError(
        f"dataset.images={root}: {len(folders)} WordNet folders, not ImageNet's 1000, and no names for them; "
        "put a classnames.txt beside them with rows `n01440764 tench`"
    )

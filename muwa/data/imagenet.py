"""Read images with classes: one folder per class, or ImageNet's validation images with a file of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muwa.data.folders import Listing, content, listing
from muwa.data.imagenet_labels import (
    LABEL_FILES,
    WNID,
    imagenet_synsets,
    label_file,
    read_labels,
    synset_names,
)
from muwa.data.labelled import decodable
from muwa.data.samples import check_broken, one_spelling, spelt_in_several_ways
from muwa.data.text_files import read_lines
from muwa.runtime.notices import notice, some
from muwa.types.data import Broken, Classes, LabelledImages

_NAME_FILES = ("LOC_synset_mapping.txt", "classnames.txt")
_SPLITS = {"train", "val", "test", "validation", "training"}
_LAYOUT = (
    "one folder per class: {root}/<class>/<image>.jpg "
    "(ImageNet: {root}/n01440764/ILSVRC2012_val_00000293.JPEG)"
)


@dataclass(frozen=True)
class _Content:
    """The content of a folder.

    Attributes:
        classes: Class folders or WordNet ids, sorted.
        images: (Image, its class), sorted by class, then by name.
        broken: Images without a label.
    """

    classes: tuple[str, ...]
    images: tuple[tuple[Path, str], ...]
    broken: tuple[Broken, ...] = ()


def read_folder(
    root: Path, *, templates: Sequence[str], fraction: float, seed: int, max_broken: float
) -> tuple[LabelledImages, list[Broken]]:
    """The images of a folder, labelled by class. Notices say which images are left out.

    The same images in class folders, or in one folder with a file of labels, give the same result.

    Args:
        root: One folder per class. Or ImageNet's validation images as they are published, all in one folder;
            their labels are in it or in a folder above it (`muwa.data.imagenet_labels`).
        templates: Zero-shot prompts for a class, with {}.
        fraction: Share of the images to take, at random by `seed`; 1 takes all.
        max_broken: Largest accepted share of broken images, and of images without a label.

    Returns:
        (Images, with classes in the order of sorted folders; broken images). Folders with the same class name
        are one class, because a zero-shot classifier cannot tell them apart: open_clip has 998 names for
        ImageNet's 1,000 folders.

    Raises:
        FileNotFoundError: There is no such folder, or it has neither class folders nor labels. The message
            says what was found, and gives the layout.
        ValueError: Class names are missing, or too many images are broken.
    """
    found = _read(root)
    if not found.images and not found.broken:
        deeper = [name for name in found.classes if listing(root / name).folders]
        hint = f" Is it dataset.images={root / deeper[0]}?" if deeper else ""
        raise FileNotFoundError(
            f"dataset.images={root}: {len(found.classes)} folders and no image; want "
            f"{_LAYOUT.format(root=root)}.{hint}"
        )
    check_broken(found.broken, len(found.images) + len(found.broken), max_broken, f"dataset.images={root}")
    names = dict(zip(found.classes, _class_names(root, found.classes), strict=True))
    classes = Classes(tuple(dict.fromkeys(names.values())), tuple(templates))
    index = {name: i for i, name in enumerate(classes.names)}
    rows = [(path, index[names[one]]) for path, one in found.images]
    if fraction < 1:
        order = np.random.default_rng(seed).permutation(len(rows))[: round(fraction * len(rows))]
        rows = [rows[i] for i in sorted(order.tolist())]
    keys = tuple(str(path.relative_to(root)) for path, _ in rows)
    images = LabelledImages(keys, tuple(path for path, _ in rows), tuple(label for _, label in rows), classes)
    sound, broken = decodable(images, max_broken, f"dataset.images={root}")
    return sound, [*found.broken, *broken]


def class_names(root: Path) -> tuple[str, ...]:
    """The names of the folder's classes, without repetition. No image is opened.

    Raises:
        FileNotFoundError, ValueError: As in `read_folder`.
    """
    check_folder(root)
    top = listing(root)
    classes = _read(root).classes if _is_flat(root, top) else _class_folders(root, top)
    return tuple(dict.fromkeys(_class_names(root, classes)))


def check_folder(root: Path) -> None:
    """Raise FileNotFoundError if there are neither class folders nor images with a file of labels."""
    top = listing(root) if root.is_dir() else None
    layout = _LAYOUT.format(root=root)
    if top is None or not (top.images or top.folders):
        raise FileNotFoundError(f"dataset.images={root}: {content(root)}; want {layout}")
    if not _is_flat(root, top):
        if _SPLITS.issuperset(top.folders):
            raise FileNotFoundError(
                f"dataset.images={root}: {', '.join(top.folders)} are splits, not classes; give one of them, "
                f"such as dataset.images={root / top.folders[-1]}"
            )
    elif label_file(root) is None:
        raise FileNotFoundError(
            f"dataset.images={root}: {len(top.images)} images and no class folder; want {layout}, or the "
            f"labels of ImageNet's validation images in this folder or above it: {LABEL_FILES}"
        )


def _read(root: Path) -> _Content:
    """List the images and their classes."""
    check_folder(root)
    top = listing(root)
    if _is_flat(root, top) and (path := label_file(root)):
        return _labelled_by(path, root, top.images)
    listings = {name: _within(root / name) for name in _class_folders(root, top)}
    left_out = [*top.images, *top.other_images, *(image for _, some in listings.values() for image in some)]
    if left_out:
        notice(
            f"dataset.images={root}: images left out, in no class folder, deeper in one, or in a format that "
            f"muwa does not read: {len(left_out)} ({some(left_out)})"
        )
    rows = [(root / one / image, one) for one, (images, _) in listings.items() for image in images]
    return _Content(tuple(listings), tuple(rows))


def _is_flat(root: Path, top: Listing) -> bool:
    """Whether there are images in the folder, and none in its folders."""
    return bool(top.images) and not any(_within(root / name)[0] for name in top.folders)


def _class_folders(root: Path, top: Listing) -> list[str]:
    """The folders that are classes. Beside WordNet ids, a folder without images is none."""
    if not any(map(WNID.fullmatch, top.folders)):
        return list(top.folders)
    return [name for name in top.folders if WNID.fullmatch(name) or _within(root / name)[0]]


def _within(folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """(The images of a class folder, or of `images/` in it; images that are left out)."""
    found = listing(folder)
    if not found.images and "images" in found.folders:  # as in Tiny ImageNet
        inner = listing(folder / "images")
        return tuple(f"images/{name}" for name in inner.images), list(inner.other_images)
    deeper = [f"{folder.name}/{one}/{name}" for one in found.folders for name in listing(folder / one).images]
    return found.images, [*(f"{folder.name}/{name}" for name in found.other_images), *deeper]


def _labelled_by(path: Path, root: Path, images: Sequence[str]) -> _Content:
    """The images of one folder with the labels of a file."""
    label = read_labels(path)
    labels = {image: label(image) for image in images}
    rows = sorted((wnid, image) for image, wnid in labels.items() if wnid is not None)
    broken = [Broken(image, f"no label in {path}") for image, wnid in labels.items() if wnid is None]
    classes = tuple(dict.fromkeys(wnid for wnid, _ in rows))
    return _Content(classes, tuple((root / image, wnid) for wnid, image in rows), tuple(broken))


def _class_names(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    """The class name of each folder, in order: the folder's name, or the name for its WordNet id."""
    wnids = [folder for folder in folders if WNID.fullmatch(folder)]
    of_wnid = _synset_names(root, wnids) if wnids else {}
    names = [of_wnid.get(folder) or folder.replace("_", " ") for folder in folders]
    spelling = one_spelling(names)
    if several := spelt_in_several_ways(spelling):
        notice(f"dataset.images={root}: classes spelt in several ways, taken as one each: {some(several)}")
    return tuple(spelling[name] for name in names)


def _synset_names(root: Path, wnids: Sequence[str]) -> dict[str, str]:
    """WordNet id -> class name, by a file in or beside the folder, else by open_clip and WordNet."""
    for path in (where / name for where in (root, root.parent) for name in _NAME_FILES):
        if path.is_file():
            rows = (line.strip().partition(" ") for line in read_lines(path))
            names = {wnid: text.split(",")[0].strip() for wnid, _, text in rows}
            if missing := [wnid for wnid in wnids if not names.get(wnid)]:
                raise ValueError(f"{path}: no name for {missing[0]} ({len(missing)} of {len(wnids)} folders)")
            notice(f"dataset.images={root}: class names are from {path}")
            return names
    names = synset_names(wnids)
    if missing := [wnid for wnid in wnids if wnid not in names]:
        raise ValueError(
            f"dataset.images={root}: {missing[0]} is no class of ImageNet-21k ({len(missing)} of "
            f"{len(wnids)} folders); put a classnames.txt beside them with rows `n01440764 tench`"
        )
    others = len(set(wnids) - set(imagenet_synsets()))
    notice(
        f"dataset.images={root}: class names are open_clip's zero-shot names for ImageNet's WordNet ids"
        + f", and WordNet's own for {others} of {len(wnids)}" * bool(others)
    )
    return names

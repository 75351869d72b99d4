"""The classes of ImageNet: WordNet ids (synsets), their names, and the labels of its validation images."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from muwa.data.folders import is_image
from muwa.data.text_files import read_lines, read_table

WNID = re.compile(r"n\d{8}")
_DEVKIT = "ILSVRC2012_validation_ground_truth.txt"
_DEVKIT_FOLDERS = ("", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12")
_SYNSETS = "imagenet_2012_validation_synset_labels.txt"
_TABLES = ("LOC_val_solution.csv", "val_annotations.txt", "val.txt")
LABEL_FILES = (
    "LOC_val_solution.csv (Kaggle), ILSVRC2012_validation_ground_truth.txt with meta.mat (devkit), or "
    "val.txt with rows `ILSVRC2012_val_00000001.JPEG 65` (index or WordNet id)"
)


def label_file(root: Path) -> Path | None:
    """The file that labels the images in `root`: in it or in one of the four folders above it."""
    for folder in (root, *root.absolute().parents[:4]):
        for name in (*_TABLES, _SYNSETS):
            if (folder / name).is_file():
                return folder / name
        for within in _DEVKIT_FOLDERS:
            if (folder / within / _DEVKIT).is_file():
                return folder / within / _DEVKIT
    return None


def read_labels(path: Path) -> Callable[[str], str | None]:
    """(Name of an image, with or without its ending) -> its WordNet id; None if the file does not label it.

    Args:
        path: One of the files that `label_file` finds. An index counts ImageNet's 1,000 classes from 0,
            sorted by WordNet id. The devkit's labels count from 1, in the order of its meta.mat, which is
            another one.

    Raises:
        FileNotFoundError: meta.mat is not beside the devkit's labels.
        ValueError: The file has no labels, or one that is no class of ImageNet.
    """
    if path.name in _TABLES:
        labels = _table(path)
        return lambda image: labels.get(_stem(image))
    if path.name == _SYNSETS:
        in_order = [_wnid(word, path, number) for number, word in _words(path)]
    else:
        ids = _devkit_ids(path.parent / "meta.mat")
        in_order = [_known(word, ids, path, number) for number, word in _words(path)]
    return lambda image: _at(in_order, image)


@functools.cache
def imagenet_synsets() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, sorted, which is the order of their indices."""
    from timm.data import ImageNetInfo  # imports torch

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def synset_names(wnids: Sequence[str]) -> dict[str, str]:
    """WordNet id -> class name, for those that are known.

    ImageNet's 1,000 classes have the names that open_clip gives to them in zero-shot classification. Other
    synsets of ImageNet-21k have the first word that WordNet gives to them.
    """
    from open_clip import IMAGENET_CLASSNAMES  # imports torch

    names = dict(zip(imagenet_synsets(), IMAGENET_CLASSNAMES, strict=True))
    if any(wnid not in names for wnid in wnids):
        from timm.data import ImageNetInfo

        words = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
        names = {wnid: text.split(",")[0].strip() for wnid, text in words.items()} | names
    return {wnid: names[wnid] for wnid in wnids if wnid in names}


def _table(path: Path) -> dict[str, str]:
    """Image, without its ending -> WordNet id, from rows of image and label. A header is skipped."""
    labels: dict[str, str] = {}
    synsets: Sequence[str] = ()
    for number, cells in read_table(path, _is_key):
        if not _is_key(cells[0]):
            continue
        word = " ".join(cells[1:]).split()[0] if any(cells[1:]) else ""
        if word.isdigit():
            synsets = synsets or imagenet_synsets()
            labels[_stem(cells[0])] = _known(word, dict(enumerate(synsets)), path, number)
        else:
            labels[_stem(cells[0])] = _wnid(word, path, number)
    if not labels:
        raise ValueError(f"{path}: no rows of image and label in it; want {LABEL_FILES}")
    return labels


def _devkit_ids(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID -> WordNet id, from the devkit's meta.mat."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not there; {_DEVKIT} has numbers that only the devkit's meta.mat explains"
        )
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        ids = zip(synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), strict=True)
        return {int(one): str(wnid) for one, wnid in ids}
    except (MatReadError, NotImplementedError, KeyError, IndexError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: cannot be read as the devkit's meta.mat, which has `synsets` with ILSVRC2012_ID and "
            f"WNID ({error})"
        ) from error


def _words(path: Path) -> list[tuple[int, str]]:
    """(Line number, content) of the lines of a file."""
    return [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]


def _at(labels: Sequence[str], image: str) -> str | None:
    """The label of ILSVRC2012_val_00000001, the first image, and so on."""
    number = _stem(image).rpartition("_")[2]
    return labels[int(number) - 1] if number.isdigit() and 1 <= int(number) <= len(labels) else None


def _known(word: str, synsets: dict[int, str], path: Path, number: int) -> str:
    if not word.isdigit() or int(word) not in synsets:
        raise ValueError(
            f"{path}:{number}: got the label {word!r}, want {min(synsets)} to {max(synsets)} or a WordNet id"
        )
    return synsets[int(word)]


def _wnid(word: str, path: Path, number: int) -> str:
    if not WNID.fullmatch(word):
        raise ValueError(f"{path}:{number}: got the label {word!r}, want a WordNet id such as n01440764")
    return word


def _is_key(cell: str) -> bool:
    return is_image(cell) or cell.startswith("ILSVRC2012_val_")


def _stem(image: str) -> str:
    return os.path.splitext(image.rpartition("/")[2])[0]

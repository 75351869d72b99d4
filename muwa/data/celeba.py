"""Read a folder in CelebA's layout: `img_align_celeba/`, an identity file, a list of frequent people."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from muwa.data.folders import content, is_image, listing
from muwa.data.samples import fold, one_spelling, spelt_in_several_ways
from muwa.data.text_files import read_lines, read_table
from muwa.runtime.notices import notice, some
from muwa.types.data import MISSING_FILE, Broken
from muwa.types.short import short_repr

# The folders that hold CelebA: as muwa's layout has it, as torchvision makes it, as its authors share it.
_BASES = ("", "celeba", "CelebA")
_IMAGES = ("img_align_celeba/img_align_celeba", "img_align_celeba", "img_align_celeba_png")
_IMAGES_WITHIN = ("", "Img")
_IDENTITIES = ("list_identity_celeba.txt", "identity_CelebA.txt")
_IDENTITIES_CSV = ("list_identity_celeba.csv", "identity_CelebA.csv")
_IDENTITIES_WITHIN = ("", "Anno")
_FREQUENT = "frequent_celebs.txt"
_PERSON = ("identity_name", "name", "person", "celebrity", "identity", "identity_id")  # the first counts
_NUMBERED = (
    "has numbers in place of names, as CelebA is published. A model knows a person by name: ask CelebA's "
    "authors (mmlab.ie.cuhk.edu.hk/projects/CelebA.html) for list_identity_celeba.txt, or write a file with "
    "rows `000001.jpg Jane_Doe` and give dataset.identities=FILE"
)
_LAYOUT = """
  {folder}/
    img_align_celeba/000001.jpg ..
    list_identity_celeba.txt     rows `000001.jpg Jane_Doe` (or identity_CelebA.txt, dataset.identities=FILE)
                                 Names are not in CelebA's public download: its authors send them on request
    frequent_celebs.txt          optional: one name per line, the people whose accuracy should stay"""


@dataclass(frozen=True)
class CelebA:
    """People and their images.

    Attributes:
        names: All people, sorted, with spaces.
        files: Name -> the person's images.
        frequent: The people whose accuracy should stay: the retain set.
        broken: Images that are listed but are not on disk, and rows that cannot be understood.
        numbered: Whether all people are called by numbers, as in CelebA's public identity file.
    """

    names: tuple[str, ...]
    files: Mapping[str, tuple[Path, ...]]
    frequent: tuple[str, ...]
    broken: tuple[Broken, ...]
    numbered: bool

    __repr__ = short_repr


def read_celeba(folder: Path, *, identities: str | None, frequent: str | None) -> CelebA:
    """Read which image shows whom. No image is opened. Notices say which images are left out.

    Names that are equal after folding (`muwa.data.samples.fold`) are one person: no caption and no setting
    could tell them apart.

    Args:
        folder: CelebA's folder, or one that has it in `celeba/` or `CelebA/`. `img_align_celeba` may contain
            a second `img_align_celeba`, as the archive unpacks on some systems. Images may have another
            ending than in the identity file.
        identities: The identity file, if it is not in `folder` under CelebA's name. Any encoding and
            separator that `muwa.data.text_files` knows; lines before the first image are its header.
        frequent: The list of frequent people, if it is not in `folder`. Without a list they are the 100
            people with the most images; ties go to the first name.

    Raises:
        FileNotFoundError: Folder, images or identity file are missing. The message says what was looked for,
            and gives the layout.
        ValueError: The identity file has no rows, or a frequent person is not in it.
    """
    identity_file = _identity_file(folder, identities)
    images = _Images(folder, given=identities is not None)
    shown, broken = _read_identities(identity_file)
    if not shown:
        why = f" ({broken[0].where}: {broken[0].why})" if broken else ""
        raise ValueError(f"{identity_file}: no row names a person{why}; want rows `000001.jpg Jane_Doe`")
    spelling = one_spelling(list(shown.values()))
    files: dict[str, list[Path]] = {name: [] for name in spelling.values()}
    for image, person in shown.items():
        if path := images.path(image):
            files[spelling[person]].append(path)
        else:
            where = images.folders[0].name
            broken.append(Broken(image, f"listed in {identity_file.name}, not in {where}/", MISSING_FILE))
    images.say_unlisted(shown, identity_file)
    names = tuple(sorted(files))
    numbered = bool(names) and all(name.isdigit() for name in names)
    if numbered:
        notice(f"{identity_file} {_NUMBERED}")
    if several := spelt_in_several_ways(spelling):
        notice(f"{identity_file}: people spelt in several ways, taken as one each: {some(several)}")
    sorted_files = {name: tuple(sorted(files[name])) for name in names}
    return CelebA(
        names, sorted_files, _frequent(identity_file, folder, frequent, files), tuple(broken), numbered
    )


class _Images:
    """The images on disk. Names are unique: the first folder that has one counts."""

    def __init__(self, folder: Path, *, given: bool):
        places = [
            folder / base / within / images
            for base in _BASES
            for within in _IMAGES_WITHIN
            for images in _IMAGES
        ]
        self.folders = [place for place in places if place.is_dir()]
        if not self.folders and given and folder.is_dir() and listing(folder).images:
            self.folders = [folder]  # the folder of the images itself
        if not self.folders:
            raise FileNotFoundError(_missing(folder, "img_align_celeba/"))
        self._place: dict[str, Path] = {}
        others: list[str] = []
        for place in self.folders:
            found = listing(place)
            others += found.other_images
            for name in found.images:
                self._place.setdefault(name, place)
        if others:
            notice(
                f"{self.folders[0]}: images left out, in a format that muwa does not read: {len(others)} "
                f"({some(others)})"
            )
        self._by_stem: dict[str, str] = {}
        for name in self._place:
            self._by_stem.setdefault(_stem(name), name)

    def path(self, image: str) -> Path | None:
        """The file of an image, which may have another ending than in the identity file."""
        name = image if image in self._place else self._by_stem.get(_stem(image))
        return self._place[name] / name if name is not None else None

    def say_unlisted(self, shown: Iterable[str], identity_file: Path) -> None:
        """Say how many images the identity file does not list: nobody knows whom they show."""
        if unlisted := sorted(self._by_stem.keys() - set(map(_stem, shown))):
            names = [self._by_stem[stem] for stem in unlisted]
            notice(
                f"{self.folders[0]}: images left out, as {identity_file.name} does not say whom they show: "
                f"{len(names)} of {len(self._by_stem)} ({some(names)})"
            )


def _read_identities(path: Path) -> tuple[dict[str, str], list[Broken]]:
    """(Image -> whom it shows, with spaces; rows that cannot be understood)."""
    rows = read_table(path, is_image)
    first = next((i for i, (_, cells) in enumerate(rows) if any(map(is_image, cells))), None)
    if first is None:
        raise ValueError(f"{path}: no rows such as `000001.jpg Jane_Doe` in it")
    header = [fold(cell) for cell in rows[first - 1][1]] if first else []
    shown: dict[str, str] = {}
    twice: dict[str, str] = {}
    broken: list[Broken] = []
    for number, cells in rows[first:]:
        image, person = _image_and_person(cells, header)
        if not image or not person:
            what = "no name of a person" if image else "no name of an image"
            broken.append(Broken(f"{path.name}:{number}", f"{what} in this row: {' '.join(cells)[:60]!r}"))
        elif fold(shown.setdefault(image, person)) != fold(person):
            twice[image] = person
    for image, person in twice.items():
        broken.append(Broken(image, f"{path.name} says that it shows {shown.pop(image)} and {person}"))
    return shown, broken


def _image_and_person(cells: Sequence[str], header: Sequence[str]) -> tuple[str, str]:
    """(The image of a row, without folders; whom it shows). "" if the row does not have it.

    The person is in the column that `header` calls so, else in the column after the image, else before it.
    """
    place = next((i for i, cell in enumerate(cells) if is_image(cell)), None)
    if place is None:
        return "", ""
    named = [header.index(fold(name)) for name in _PERSON if fold(name) in header]
    columns = [i for i in (*named, place + 1, place - 1) if i != place and 0 <= i < len(cells)]
    person = cells[columns[0]] if columns else ""
    return PureWindowsPath(cells[place]).name, " ".join(person.replace("_", " ").split())


def _frequent(
    identity_file: Path, folder: Path, given: str | None, files: Mapping[str, list[Path]]
) -> tuple[str, ...]:
    """The names in the list of frequent people, or the 100 with the most images."""
    places = [Path(given)] if given else [folder / _FREQUENT, identity_file.parent / _FREQUENT]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if given:
            raise FileNotFoundError(f"dataset.frequent={given}: no such file; want one name per line")
        return tuple(sorted(sorted(files, key=lambda name: (-len(files[name]), name))[:100]))
    rows = [line.replace("\t", " ").replace(",", " ").split() for line in read_lines(path)]
    words = [
        row[:-1] if len(row) > 1 and row[-1].isdigit() else row for row in rows if row
    ]  # without a count
    known = {fold(name): name for name in files}
    names = [" ".join(row).replace("_", " ") for row in words]
    if unknown := [name for name in names if fold(name) not in known]:
        raise ValueError(
            f"{path}: {unknown[0]!r} has no image in the identity file ({len(unknown)} such names)"
        )
    return tuple(dict.fromkeys(known[fold(name)] for name in names))


def _identity_file(folder: Path, given: str | None) -> Path:
    if given:
        if not Path(given).is_file():
            raise FileNotFoundError(
                f"dataset.identities={given}: no such file; want rows `000001.jpg Jane_Doe`"
            )
        return Path(given)
    bases = [folder / base / within for base in _BASES for within in _IDENTITIES_WITHIN]
    for name in (*_IDENTITIES, *_IDENTITIES_CSV):
        for base in bases:
            if (base / name).is_file():
                return base / name
    raise FileNotFoundError(_missing(folder, " or ".join(_IDENTITIES)))


def _stem(image: str) -> str:
    """An image's name without its ending, with composed letters: macOS takes them apart."""
    return unicodedata.normalize("NFC", os.path.splitext(image)[0].lower())


def _missing(folder: Path, what: str) -> str:
    found = "there is no such folder" if not folder.is_dir() else f"there is {content(folder)}"
    layout = _LAYOUT.format(folder=folder)
    return f"dataset.celeba={folder}: looked for {what}; {found}. Expected layout:{layout}"

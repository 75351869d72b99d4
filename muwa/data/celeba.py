"""Read a folder in CelebA's layout: `img_align_celeba/`, an identity file, a list of frequent people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muwa.types.data import MISSING_FILE, Broken

_IDENTITIES = ("list_identity_celeba.txt", "identity_CelebA.txt")
_FREQUENT = "frequent_celebs.txt"
_LAYOUT = """
  {folder}/
    img_align_celeba/000001.jpg ..
    list_identity_celeba.txt     two header lines, then rows `000001.jpg Jane_Doe` (or identity_CelebA.txt)
    frequent_celebs.txt          optional: one name per line, the people whose accuracy should stay"""


@dataclass(frozen=True)
class CelebA:
    """People and their images.

    Attributes:
        names: All people, sorted, with spaces.
        files: Name -> the person's images.
        frequent: The people whose accuracy should stay: the retain set.
        broken: Images that are listed but are not on disk.
    """

    names: tuple[str, ...]
    files: Mapping[str, tuple[Path, ...]]
    frequent: tuple[str, ...]
    broken: tuple[Broken, ...]


def read_celeba(folder: Path, *, identities: str | None, frequent: str | None) -> CelebA:
    """Read which image shows whom. No image is opened.

    Args:
        folder: CelebA's folder. `img_align_celeba` may contain a second `img_align_celeba`, as the archive
            unpacks on some systems.
        identities: The identity file, if it is not in `folder` under CelebA's name.
        frequent: The list of frequent people, if it is not in `folder`. Without a list they are the 100
            people with the most images; ties go to the first name.

    Raises:
        FileNotFoundError: Folder, images or identity file are missing. The message says what was looked for,
            and gives the layout.
        ValueError: The identity file has no rows, or a frequent person is not in it.
    """
    identity_file = _one_of(
        [Path(identities)] if identities else [folder / name for name in _IDENTITIES], folder
    )
    places = (folder / "img_align_celeba" / "img_align_celeba", folder / "img_align_celeba")
    images = next((path for path in places if path.is_dir()), None)
    if images is None:
        raise FileNotFoundError(_missing(folder, "img_align_celeba/"))
    on_disk = {path.name for path in images.iterdir()}
    files: dict[str, list[Path]] = {}
    broken: list[Broken] = []
    for line in identity_file.read_text().splitlines():
        image, _, person = line.strip().partition(" ")
        if not image.lower().endswith((".jpg", ".png")):
            continue  # the two header lines
        name = person.strip().replace("_", " ")
        files.setdefault(name, [])
        if image in on_disk:
            files[name].append(images / image)
        else:
            broken.append(
                Broken(image, f"listed in {identity_file.name}, not in {images.name}/", MISSING_FILE)
            )
    if not files:
        raise ValueError(f"{identity_file}: no rows such as `000001.jpg Jane_Doe` in it")
    names = tuple(sorted(files))
    sorted_files = {name: tuple(sorted(files[name])) for name in names}
    return CelebA(names, sorted_files, _frequent(folder, frequent, files), tuple(broken))


def _frequent(folder: Path, given: str | None, files: Mapping[str, list[Path]]) -> tuple[str, ...]:
    """The names in the list of frequent people, or the 100 with the most images."""
    path = Path(given) if given else folder / _FREQUENT
    if not path.is_file():
        if given:
            raise FileNotFoundError(f"dataset.frequent={given}: no such file; want one name per line")
        return tuple(sorted(sorted(files, key=lambda name: (-len(files[name]), name))[:100]))
    rows = [line.replace("\t", " ").replace(",", " ").split() for line in path.read_text().splitlines()]
    words = [
        row[:-1] if len(row) > 1 and row[-1].isdigit() else row for row in rows if row
    ]  # without a count
    names = [" ".join(row).replace("_", " ") for row in words]
    if unknown := [name for name in names if name not in files]:
        raise ValueError(
            f"{path}: {unknown[0]!r} has no image in the identity file ({len(unknown)} such names)"
        )
    return tuple(dict.fromkeys(names))


def _one_of(paths: list[Path], folder: Path) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(_missing(folder, " or ".join(path.name for path in paths)))


def _missing(folder: Path, what: str) -> str:
    found = "there is no such folder"
    if folder.is_dir():
        found = f"there is {', '.join(sorted(path.name for path in folder.iterdir())[:6]) or 'nothing'}"
    layout = _LAYOUT.format(folder=folder)
    return f"dataset.celeba={folder}: looked for {what}; {found}. Expected layout:{layout}"

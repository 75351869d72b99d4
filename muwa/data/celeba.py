"""Read CelebA's own layout: `img_align_celeba/`, an identity file, a list of frequent people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muwa.types.data import Broken

_IDENTITIES = ("list_identity_celeba.txt", "identity_CelebA.txt")
_FREQUENT = "frequent_celebs.txt"
_LAYOUT = """
  {folder}/
    img_align_celeba/000001.jpg ..
    list_identity_celeba.txt     two header lines, then rows `000001.jpg Jane_Doe` (or identity_CelebA.txt)
    frequent_celebs.txt          optional: one name a line, the people whose accuracy must be kept"""


@dataclass(frozen=True)
class CelebA:
    """People and their pictures. `names` are sorted, with spaces; `frequent` are those that must be kept."""

    names: tuple[str, ...]
    files: Mapping[str, tuple[Path, ...]]
    frequent: tuple[str, ...]
    broken: tuple[Broken, ...]


def read_celeba(folder: Path, *, identities: str | None, frequent: str | None) -> CelebA:
    """Read who is on which picture; no picture is opened.

    Args:
        folder: CelebA's folder (`img_align_celeba` may be nested once more, as the archive unpacks on some systems).
        identities: The identity file, when it is not in `folder` under CelebA's name.
        frequent: Likewise the list of frequent people. Without one: the 100 people with most pictures, then by name.

    Returns:
        All people of the identity file; a listed picture that is not on disk is in `broken`.

    Raises:
        FileNotFoundError: Folder, pictures or identity file are missing: says what was looked for and the layout.
        ValueError: The identity file has no rows, or a frequent name is nobody in it.
    """
    listed = _one_of([Path(identities)] if identities else [folder / name for name in _IDENTITIES], folder)
    images = next(
        (p for p in (folder / "img_align_celeba" / "img_align_celeba", folder / "img_align_celeba") if p.is_dir()), None
    )
    if images is None:
        raise FileNotFoundError(_missing(folder, "img_align_celeba/"))
    there = {path.name for path in images.iterdir()}
    files: dict[str, list[Path]] = {}
    broken: list[Broken] = []
    for line in listed.read_text().splitlines():
        image, _, who = line.strip().partition(" ")
        if not image.lower().endswith((".jpg", ".png")):
            continue  # the two header lines
        name = who.strip().replace("_", " ")
        files.setdefault(name, [])
        if image in there:
            files[name].append(images / image)
        else:
            broken.append(Broken(image, f"listed in {listed.name}, not in {images.name}/"))
    if not files:
        raise ValueError(f"{listed}: no rows such as `000001.jpg Jane_Doe` in it")
    names = tuple(sorted(files))
    return CelebA(names, {n: tuple(sorted(files[n])) for n in names}, _frequent(folder, frequent, files), tuple(broken))


def _frequent(folder: Path, given: str | None, files: Mapping[str, list[Path]]) -> tuple[str, ...]:
    path = Path(given) if given else folder / _FREQUENT
    if not path.is_file():
        if given:
            raise FileNotFoundError(f"dataset.frequent={given}: no such file; want one name a line")
        return tuple(sorted(sorted(files, key=lambda name: (-len(files[name]), name))[:100]))
    rows = [line.replace("\t", " ").replace(",", " ").split() for line in path.read_text().splitlines()]
    names = [" ".join(row[:-1] if len(row) > 1 and row[-1].isdigit() else row).replace("_", " ") for row in rows if row]
    if unknown := [name for name in names if name not in files]:
        raise ValueError(f"{path}: {unknown[0]!r} has no picture in the identity file ({len(unknown)} such names)")
    return tuple(dict.fromkeys(names))


def _one_of(paths: list[Path], folder: Path) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(_missing(folder, " or ".join(path.name for path in paths)))


def _missing(folder: Path, what: str) -> str:
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) if folder.is_dir() else None
    found = f"there is {there or 'nothing'}" if there is not None else "there is no such folder"
    return f"dataset.celeba={folder}: looked for {what}; {found}. Expected layout:{_LAYOUT.format(folder=folder)}"

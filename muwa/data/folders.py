"""List a folder of a data set: its images, its folders, and what cannot be taken."""

from __future__ import annotations

import mimetypes
import os
from dataclasses import dataclass
from pathlib import Path

from muwa.data.samples import ENDINGS

# Files and folders that operating systems and archives add. Names that start with a dot are such, too.
_SYSTEM = frozenset(
    {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found", "__pycache__"}
)


@dataclass(frozen=True)
class Listing:
    """What is in a folder, without its subfolders. All names are sorted.

    Attributes:
        images: Names of files with an ending in `ENDINGS`. They may be no regular files: who reads them says.
        folders: Names of folders.
        other_images: Names of image files in formats that muwa does not read.
    """

    images: tuple[str, ...]
    folders: tuple[str, ...]
    other_images: tuple[str, ...]


def listing(folder: Path) -> Listing:
    """List a folder. No file is opened. What operating systems add (`._x.jpg`, `__MACOSX`) is left out.

    Raises:
        OSError: It is no folder, or cannot be read.
    """
    images, folders, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_system(entry.name):
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif is_image(entry.name):
                images.append(entry.name)
            elif (mimetypes.guess_type(entry.name)[0] or "").startswith("image/"):
                others.append(entry.name)
    return Listing(tuple(sorted(images)), tuple(sorted(folders)), tuple(sorted(others)))


def is_image(name: str) -> bool:
    """Whether a file's name has the ending of a format that muwa reads."""
    return os.path.splitext(name)[1].lower() in ENDINGS


def is_system(name: str) -> bool:
    """Whether an operating system or an archive adds files or folders of this name.

    >>> is_system("._000001.jpg"), is_system("__MACOSX"), is_system("000001.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _SYSTEM


def content(folder: Path) -> str:
    """What is there, for messages: the first entries of a folder, "nothing", or "no such folder"."""
    if not folder.is_dir():
        return "no such folder"
    return ", ".join(sorted(os.listdir(folder))[:6]) or "nothing"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False

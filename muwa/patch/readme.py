"""README.md of an edited folder is the unlearning card. The own card of the base is kept, and comes back."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.drafts import file_mode
from muwa.fingerprint import file_digest
from muwa.patch.card import BASE_CARD, FOLDER, base_metadata, card_text

README = "README.md"


def replaced(base: Path, *, edited: bool) -> set[Path]:
    """The cards of `base` that are not copied as they are.

    Args:
        edited: Whether `base` has an unlearning card already.
    """
    return {base / README, base / BASE_CARD} if edited else {base / README}


def write_readme(
    folder: Path,
    base: Path,
    patches: Sequence[Mapping[str, Any]],
    *,
    edited: bool,
    removed: Sequence[Mapping[str, Any]],
) -> None:
    """Write the card into a new folder.

    Without patches, the base's own card is README.md again. With patches, it is README.base.md, and README.md
    is the unlearning card with the metadata (licence, library, ...) of the base's.

    Args:
        folder: The new folder, with its weights.
        base: What it was made from: a folder or a file.
        patches: The patches on `folder`, as in its record.
        edited: Whether `base` has an unlearning card already.
        removed: The patches that were taken off: "sha256" and "when" of each.
    """
    own = base / (BASE_CARD if edited else README)
    if own.is_file():
        shutil.copyfile(own, folder / (BASE_CARD if patches else README))
    if patches:
        names = sorted({name for one in patches for name in one.get("edited", ())})
        files = {name: file_digest(folder / name) for name in names if (folder / name).is_file()}
        text = card_text(patches, FOLDER, base=base_metadata(folder), files=files, removed=removed)
        (folder / README).write_text(text, encoding="utf-8")
        (folder / README).chmod(file_mode())

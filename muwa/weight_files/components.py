"""The weight files of one model folder, as save_pretrained names them: variants, shards, .bin files.

A variant is a second copy of the weights: `model.fp16.safetensors` beside `model.safetensors`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from muwa.types.short import short_repr
from muwa.weight_files.diagnosis import check_file

_NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>\w+))?"
    r"(?:-\d+-of-(?P<shards>\d+))?(?:\.(?P<late>\w+))?\.(?P<kind>safetensors|bin)"
)


@dataclass(frozen=True)
class WeightSet:
    """The files of one copy of the weights.

    Args:
        variant: None for the plain copy; "fp16", "bf16", ... for others.
        files: One file, or all its shards.
        shards: How many shards there must be; 0 if it is one file.
        index: The file that says which shard holds a tensor; None if it is one file.
    """

    variant: str | None
    files: tuple[Path, ...]
    shards: int
    index: Path | None

    __repr__ = short_repr

    @property
    def pickled(self) -> bool:
        """Whether the files are pickles (.bin)."""
        return self.files[0].suffix == ".bin"


def weight_sets(folder: Path) -> list[WeightSet]:
    """All copies of the weights in a folder, in the order in which they should be taken.

    The plain copy stands before variants, then safetensors before .bin, then one file before shards.
    """
    found: dict[tuple[str, str, int, str], list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            variant = match["variant"] or match["late"] or ""
            key = (variant, match["kind"], int(match["shards"] or 0), match["stem"])
            found.setdefault(key, []).append(path)
    order = sorted(found, key=lambda key: (key[0] != "", key[1] == "bin", key[2], key[0], key[3]))
    return [
        WeightSet(variant or None, tuple(found[key]), shards, _index(folder, key) if shards else None)
        for key in order
        for variant, _, shards, _ in [key]
    ]


def _index(folder: Path, key: tuple[str, str, int, str]) -> Path:
    variant, kind, _, stem = key
    return folder / ".".join(filter(None, (stem, kind, "index", variant, "json")))


def weights_of(folder: Path, where: str) -> WeightSet:
    """The copy of the weights to load: the first of `weight_sets` that is whole.

    Args:
        where: The setting that names the folder, for messages: "model.path".

    Raises:
        FileNotFoundError: There are no weights, or shards or their index are missing.
        ValueError: A file is not what its name says (`muwa.weight_files.diagnosis.fault`).
    """
    sets = weight_sets(folder)
    if not sets:
        there = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"{where}: no weights in {folder}; looked for model.safetensors or "
            "diffusion_pytorch_model.safetensors, a variant (model.fp16.safetensors), shards with their "
            f"index, or pytorch_model.bin; found {there}"
        )
    taken = next((one for one in sets if _lacks(one) is None), sets[0])
    if (lacking := _lacks(taken)) is not None:
        raise FileNotFoundError(f"{where}: {folder}: {lacking}")
    for path in taken.files:
        check_file(path, f"{where}: ")
    return taken


def _lacks(one: WeightSet) -> str | None:
    """What a set of shards lacks."""
    if one.shards and len(one.files) != one.shards:
        return f"{len(one.files)} of the {one.shards} shards of {one.files[0].name} are there"
    if one.index is not None and not one.index.is_file():
        return f"{one.files[0].name} and others are shards, but their index {one.index.name} is not there"
    return None

"""Is a folder the base with some patches, bit for bit?"""

from __future__ import annotations

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from muwa.patch.card import BASE_CARD
from muwa.patch.change import expected_changes, read_given, written_name
from muwa.patch.earlier import absent
from muwa.patch.files import find_checkpoint, read_file, tensor_names
from muwa.patch.ledger import RECORD, read_ledger
from muwa.patch.readme import README
from muwa.patch.twins import FOREIGN, PICKLED

_WRITTEN = (README, BASE_CARD)  # by `apply`
_WEIGHTS = {".safetensors", *PICKLED, *FOREIGN}


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Args:
        differs: What is not as it should be, one line each; none if the folder is the base with the patches.
        notes: What else is to be known, one line each.
        tensors: How many tensors were compared.
    """

    differs: tuple[str, ...]
    notes: tuple[str, ...]
    tensors: int


def verify(folder: Path, base: Path, paths: Sequence[Path]) -> Verdict:
    """Compare every tensor of a folder (or single file) with what the base and the patches give.

    Args:
        folder: The edited folder or file.
        base: The unedited one, in the same layout.
        paths: The patch files, in the order in which they were put on.

    Raises:
        ValueError, KeyError, FileNotFoundError: `base` is not the base of the patches, or there are no
            weights.
    """
    find_checkpoint(folder) if not (folder / "model_index.json").is_file() else None
    changes, unedited = expected_changes(base, paths)
    differs: list[str] = []
    notes = [*_other_patches(folder, paths), *_earlier_patches(paths)]
    tensors = 0
    seen = {Path(RECORD)}
    for path in _files(base):
        name = Path(written_name(path, base)) if path in changes else _name(path, base)
        copy = folder if folder.is_file() else folder / name
        seen.add(name)
        if path in unedited and path not in changes:
            state = "UNEDITED" if copy.exists() else "left out"
            notes.append(f"{state}: {name} ({unedited[path]})")
        elif not copy.is_file():
            (differs if path.suffix in _WEIGHTS else notes).append(f"{name}: is in the base, and not here")
        elif path in changes or path.suffix == ".safetensors":
            count, found = _compared(path, copy, changes.get(path, {}))
            tensors, differs = tensors + count, [*differs, *found]
        elif not filecmp.cmp(path, copy, shallow=False):
            (differs if path.suffix in _WEIGHTS else notes).append(f"{name}: is not the base's file")
    for path in [] if folder.is_file() else _files(folder):
        if (name := path.relative_to(folder)) not in seen:
            if path.suffix in _WEIGHTS:
                differs.append(f"{name}: is not in the base")
            elif name.name not in _WRITTEN:
                notes.append(f"{name}: is not in the base")
    return Verdict(tuple(differs), tuple(notes), tensors)


def _files(base: Path) -> list[Path]:
    """The files of a folder at any depth, without a repository's history; or a single file."""
    if base.is_file():
        return [base]
    hidden = {".git", ".hg"}
    return sorted(p for p in base.rglob("*") if p.is_file() and not hidden & {*p.relative_to(base).parts})


def _name(path: Path, base: Path) -> Path:
    return path.relative_to(base) if base.is_dir() else Path(path.name)


def _other_patches(folder: Path, paths: Sequence[Path]) -> Iterator[str]:
    """A line if the folder's record names another number of patches."""
    recorded = read_ledger(folder).requests
    if recorded and len(recorded) != len(paths):
        titles = "; ".join(one.title for one in recorded)
        count = f"{len(recorded)} {'patch' if len(recorded) == 1 else 'patches'}"
        given = f"{len(paths)} {'was' if len(paths) == 1 else 'were'} given"
        yield f"{folder}: its record names {count}, {given}: {titles}"


def _earlier_patches(paths: Sequence[Path]) -> Iterator[str]:
    """A line for each patch that was made on top of others which are not among those before it."""
    on: list[str] = []
    for one in read_given(paths):
        if missing := absent(one.request, on):
            titles = ", ".join(sha[:12] for sha in missing)
            which = f"{'patch' if len(missing) == 1 else 'patches'} {titles}, not given before it"
            yield f"{one.path}: was made on top of {which}; whom that concerned is known again without it"
        on.append(one.request.sha256)


def _compared(base: Path, copy: Path, changed: Mapping[str, Tensor]) -> tuple[int, list[str]]:
    """(How many tensors of two weight files were compared, the differences)."""
    with ExitStack() as files:
        wanted, found = _Reader(base, files), _Reader(copy, files)
        every = sorted({*wanted.names, *found.names})
        differs = []
        for name in every:
            if name not in found.names or name not in wanted.names:
                where = "here" if name in wanted.names else "in the base"
                differs.append(f"{copy.name}: {name}: is not {where}")
                continue
            tensor, want = found.read(name), wanted.read(name)
            want = changed[name].to(want.dtype) if name in changed else want
            if not same_bytes(tensor, want):
                differs.append(f"{copy.name}: {name}: {_difference(tensor, want)}")
    return len(every), differs


class _Reader:
    """The tensors of one weight file, each read when it is asked for if the file allows that."""

    def __init__(self, path: Path, files: ExitStack):
        self.names = set(tensor_names(path))
        self._file = files.enter_context(safe_open(path, "pt")) if path.suffix == ".safetensors" else None
        self._tensors = {} if self._file else read_file(path)

    def read(self, name: str) -> Tensor:
        return self._file.get_tensor(name) if self._file else self._tensors[name]


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(*flat)


def _difference(tensor: Tensor, want: Tensor) -> str:
    if tensor.dtype != want.dtype or tensor.shape != want.shape:
        return f"got {tensor.dtype} {tuple(tensor.shape)}, want {want.dtype} {tuple(want.shape)}"
    gap = (tensor.double() - want.double()).abs()
    return f"{int((tensor != want).sum())} of {tensor.numel()} values differ, by at most {gap.max():.3g}"

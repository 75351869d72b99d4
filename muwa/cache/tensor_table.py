"""A table of rows by content: whatever is computed picture by picture is computed once for each picture.

A set of pictures changes with every request; its pictures hardly do. A table is a folder of safetensors files, each with
the digests of some items and their rows; files are only ever added, whole.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.fingerprint import digest


def rows_of(folder: Path, digests: Sequence[str], compute: Callable[[list[int]], Tensor]) -> tuple[Tensor, int]:
    """The rows of the items with these digests, those that are not in the table computed and added to it.

    Args:
        folder: The table; the caller holds its lock.
        digests: SHA-256 (hex) of each item, at least one; an item may come twice.
        compute: Places in `digests` -> their rows, (n, ...).

    Returns:
        (rows (len(digests), ...), how many of them were computed).
    """
    place: dict[str, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for i, row in enumerate(_read(path, "digests")):
            place[bytes(row.tolist()).hex()] = (path, i)
    missing = {one: i for i, one in enumerate(digests) if one not in place}
    if missing:
        fresh = compute(list(missing.values()))
        path = folder / f"{digest(list(missing))}.safetensors"
        _write(path, fresh, list(missing))
        place |= {one: (path, i) for i, one in enumerate(missing)}
    out: Tensor | None = None
    for path in dict.fromkeys(place[one][0] for one in digests):
        here = [i for i, one in enumerate(digests) if place[one][0] == path]
        rows = _read(path, "rows")[[place[digests[i]][1] for i in here]]
        out = rows.new_empty(len(digests), *rows.shape[1:]) if out is None else out
        out[here] = rows
    assert out is not None
    return out, len(missing)


def _read(path: Path, name: str) -> Tensor:
    """One tensor of a file; a damaged file is reported, removed and counts as empty."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        warnings.warn(f"cache entry {path.name[:12]} is damaged ({error}); it is computed again", stacklevel=4)
        path.unlink(missing_ok=True)
        return torch.empty(0, dtype=torch.uint8)


def _write(path: Path, rows: Tensor, digests: Sequence[str]) -> None:
    """Add a file to the table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    codes = torch.tensor([list(bytes.fromhex(one)) for one in digests], dtype=torch.uint8)
    save_file({"digests": codes, "rows": rows.contiguous()}, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)

"""A table of tensors, one row for each item: what is computed item by item is computed once for each item.

An item is an image, a prompt or a question. Two requests often have most of their images in common: the
second request computes rows only for the images that are new.

A table is a folder of safetensors files. Each file holds the SHA-256 digests of some items and their rows.
A file is added whole and never changed; a damaged file is removed.
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


def rows_of(
    folder: Path, digests: Sequence[str], compute: Callable[[list[int]], Tensor]
) -> tuple[Tensor, int]:
    """Read the rows of some items; compute the rows that the table lacks and add them to it.

    Args:
        folder: The folder of the table. The caller holds its lock.
        digests: SHA-256 (hex) of each item, at least one. An item may occur more than once.
        compute: Gives the rows, (n, ...), of the items at n indices into `digests`.

    Returns:
        (rows, number computed). The rows, (len(digests), ...), are in the order of `digests`.
    """
    location: dict[str, tuple[Path, int]] = {}  # digest -> file and index in that file
    for path in sorted(folder.glob("*.safetensors")):
        for i, code in enumerate(_read(path, "digests")):
            location[bytes(code.tolist()).hex()] = (path, i)
    missing = {item: i for i, item in enumerate(digests) if item not in location}
    if missing:
        path = folder / f"{digest(list(missing))}.safetensors"
        _write(path, compute(list(missing.values())), list(missing))
        location |= {item: (path, i) for i, item in enumerate(missing)}
    table: Tensor | None = None
    for path in dict.fromkeys(location[item][0] for item in digests):
        indices = [i for i, item in enumerate(digests) if location[item][0] == path]
        rows = _read(path, "rows")[[location[digests[i]][1] for i in indices]]
        table = rows.new_empty(len(digests), *rows.shape[1:]) if table is None else table
        table[indices] = rows
    assert table is not None
    return table, len(missing)


def _read(path: Path, name: str) -> Tensor:
    """Read one tensor of a file. Warn about a damaged file, remove it and return an empty tensor."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        message = f"cache entry {path.name[:12]} is damaged ({error}); it is computed again"
        warnings.warn(message, stacklevel=4)
        path.unlink(missing_ok=True)
        return torch.empty(0, dtype=torch.uint8)


def _write(path: Path, rows: Tensor, digests: Sequence[str]) -> None:
    """Add a file to the table. It is written as a draft and renamed: an interrupted write adds nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    codes = torch.tensor([list(bytes.fromhex(item)) for item in digests], dtype=torch.uint8)
    save_file({"digests": codes, "rows": rows.contiguous()}, draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, path)

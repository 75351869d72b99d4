"""A table of tensors, one row for each item: what is computed item by item is computed once for each item.

An item is an image, a prompt or a question. Two requests often have most of their images in common: the
second request computes rows only for the images that are new.

A table is a folder of safetensors files. Each file holds the SHA-256 digests of some items and their rows.
A file is added whole and never changed. It holds the SHA-256 of its tensors; a damaged file is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.drafts import new_file, remove
from muwa.fingerprint import digest, fingerprint
from muwa.runtime.notices import notice


class UnusableFileError(Exception):
    """A file of a table that cannot be used: (its path, why)."""


def rows_of(
    folder: Path, digests: Sequence[str], compute: Callable[[list[int]], Tensor], *, writable: bool
) -> tuple[Tensor, int]:
    """Read the rows of some items; compute the rows that the table lacks and add them to it.

    Args:
        folder: The folder of the table. The caller holds its lock.
        digests: SHA-256 (hex) of each item, at least one. An item may occur more than once.
        compute: Gives the rows, (n, ...), of the items at n indices into `digests`.
        writable: Whether computed rows are added to the table, and damaged files removed.

    Returns:
        (rows, number computed). The rows, (len(digests), ...), are in the order of `digests`.
    """
    paths = sorted(folder.glob("*.safetensors"))
    while True:
        try:
            read = dict(_rows_by_file(paths, set(digests)))
            break
        except UnusableFileError as error:
            path, reason = error.args
            notice(f"cache entry {path.name[:12]} {reason}; it is computed again")
            paths.remove(path)
            if writable and reason.startswith("is damaged"):
                remove(path)
    found = {item for items, _ in read.values() for item in items}
    missing = {item: i for i, item in enumerate(digests) if item not in found}
    if missing:
        path = folder / f"{digest(list(missing))}.safetensors"
        rows = compute(list(missing.values()))
        if writable:
            _write(path, rows, list(missing))
        read[path] = list(missing), rows
    return _in_order(digests, list(read.values())), len(missing)


def _rows_by_file(paths: Sequence[Path], wanted: set[str]) -> Iterator[tuple[Path, tuple[list[str], Tensor]]]:
    """File -> (the wanted items in it, their rows (n, ...)), each item from the first file that has it.

    Raises:
        UnusableFileError: A file is damaged or cannot be read.
    """
    for path in paths:
        codes = _read(path, "digests")
        places = {bytes(code.tolist()).hex(): i for i, code in enumerate(codes)}
        items = [item for item in places if item in wanted]
        if items:
            wanted = wanted.difference(items)
            yield path, (items, _read(path, "rows")[[places[item] for item in items]])


def _in_order(digests: Sequence[str], parts: list[tuple[list[str], Tensor]]) -> Tensor:
    """The rows of the items `digests`, in this order. Uses the parts up, to hold no row twice for long."""
    indices: dict[str, list[int]] = {}
    for i, item in enumerate(digests):
        indices.setdefault(item, []).append(i)
    first = parts[0][1]
    table = first.new_empty(len(digests), *first.shape[1:])
    while parts:
        items, rows = parts.pop()
        for item, row in zip(items, rows, strict=True):
            table[indices[item]] = row
    return table


def _read(path: Path, name: str) -> Tensor:
    """One tensor of a file.

    Raises:
        UnusableFileError: The file is damaged or cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            tensor = file.get_tensor(name)
            if (file.metadata() or {}).get(name) != fingerprint(tensor):
                raise UnusableFileError(path, f"is damaged (its {name} are not those that were written)")
            return tensor
    except PermissionError as error:
        raise UnusableFileError(path, f"cannot be read ({error.strerror})") from error
    except (SafetensorError, OSError) as error:
        raise UnusableFileError(path, f"is damaged ({error})") from error


def _write(path: Path, rows: Tensor, digests: Sequence[str]) -> None:
    """Add a file to the table, whole or not at all."""
    codes = torch.tensor([list(bytes.fromhex(item)) for item in digests], dtype=torch.uint8)
    tensors = {"digests": codes, "rows": rows.contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as draft:
        save_file(tensors, draft, metadata={name: fingerprint(x) for name, x in tensors.items()})

"""Cache entries on disk: folders that hold a value as JSON and safetensors (never pickle), and its key.

    value.json            the value; a tensor is replaced by its name
    value.safetensors     the tensors, if there are any
    key.json              stage, key, parts of the key, seconds of computation, SHA-256 of the other files

An entry is written to a draft folder and renamed, so an interrupted write leaves no entry. An entry whose
files are not those that were written is not read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from muwa.drafts import new_file, new_folder
from muwa.fingerprint import file_digest
from muwa.runtime.notices import notice
from muwa.types import data, edit, gradients, metric, search

FILES = ("key.json", "value.json", "value.safetensors")
CHECKSUMS = "sha256"  # in key.json: file -> SHA-256 (hex) of its bytes

# What reading a damaged entry raises, depending on which bytes are damaged.
DAMAGE = (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError, SafetensorError)

# The records that a value may hold: the dataclasses of muwa.types.data, edit, gradients, metric and search.
RECORDS: dict[str, type] = {
    name: record
    for module in (data, edit, gradients, metric, search)
    for name, record in vars(module).items()
    if dataclasses.is_dataclass(record) and isinstance(record, type)
}


def read_entry(folder: Path) -> tuple[bool, Any]:
    """(True, value), or (False, None) if there is no entry. Warns of one that is damaged or not readable."""
    try:
        if not folder.exists():
            return False, None
        if strange := [path.name for path in folder.iterdir() if path.name in FILES and not path.is_file()]:
            raise ValueError(f"{strange[0]} is not a regular file")  # to read a pipe might never end
        about = json.loads((folder / "key.json").read_text())
        if about["key"] != folder.name:
            raise ValueError(f"it holds the value of {about['key'][:12]}")
        if strange := [name for name in about[CHECKSUMS] if name not in FILES]:
            raise ValueError(f"{strange[0]!r} is no file of an entry")
        for name, wanted in about[CHECKSUMS].items():
            if file_digest(folder / name) != wanted:
                raise ValueError(f"{name} has other bytes than were written")
        tree = json.loads((folder / "value.json").read_text())
        tensors = load_file(folder / "value.safetensors") if (folder / "value.safetensors").is_file() else {}
        return True, _load(tree, tensors)
    except PermissionError as error:
        notice(f"cache entry {folder}: {error.strerror}; it is computed again")
    except DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) else error
        notice(f"cache entry {folder.name[:12]} is damaged ({reason}); it is computed again")
    return False, None


def write_entry(folder: Path, value: Any, about: Mapping[str, object]) -> None:
    """Write an entry. It appears when it is complete, or not at all.

    Args:
        about: The content of key.json, without the checksums.

    Raises:
        TypeError: The value is of a kind that the cache does not take.
        OSError: The folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    tree = _dump(value, tensors)
    with new_folder(folder) as draft:
        if tensors:
            save_file(tensors, draft / "value.safetensors")
        (draft / "value.json").write_text(json.dumps(tree))
        checksums = {path.name: file_digest(path) for path in sorted(draft.iterdir())}
        (draft / "key.json").write_text(json.dumps({**about, CHECKSUMS: checksums}, indent=1, sort_keys=True))


def compute_seconds(folder: Path) -> float:
    """The seconds that computing the value of an entry took."""
    return json.loads((folder / "key.json").read_text())["seconds"]


def start_attempt(unfinished: Path) -> float:
    """Note that an attempt at a resumable computation starts now.

    Args:
        unfinished: The folder of its unfinished state; made if it does not exist.

    Returns:
        Seconds that the stopped attempts took, each from its start to the last file that it wrote. A damaged
        note counts as none.
    """
    unfinished.mkdir(parents=True, exist_ok=True)
    note = unfinished / "attempts.json"
    spent = 0.0
    if note.is_file():
        with contextlib.suppress(*DAMAGE):
            started, before = map(float, json.loads(note.read_text()))
            written = [path.stat().st_mtime for path in unfinished.iterdir() if path != note]
            spent = before + max([0.0, *(when - started for when in written)])
    with new_file(note) as draft:
        draft.write_text(json.dumps([time.time(), spent]))
    return spent


def _dump(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON. Each tensor is added to `tensors`; the JSON holds its name there."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensor = value.detach().cpu().contiguous()
        memory = {other.untyped_storage().data_ptr() for other in tensors.values()}
        shared = tensor.untyped_storage().data_ptr() in memory  # safetensors refuses views of one memory
        tensors[name] = tensor.clone() if shared else tensor
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | float | str):
        return {"plain": value}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_dump(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_dump(k, tensors), _dump(v, tensors)] for k, v in value.items()]}
    if dataclasses.is_dataclass(value) and RECORDS.get(type(value).__name__) is type(value):
        fields = {f.name: _dump(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    raise TypeError(
        f"cannot cache a {type(value).__name__}: want tensors, plain values or the dataclasses of "
        "muwa.types.data, edit, gradients, metric and search"
    )


def _load(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_dump`."""
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "plain" in tree:
        return tree["plain"]
    if "list" in tree:
        return [_load(item, tensors) for item in tree["list"]]
    if "tuple" in tree:
        return tuple(_load(item, tensors) for item in tree["tuple"])
    if "dict" in tree:
        return {_load(k, tensors): _load(v, tensors) for k, v in tree["dict"]}
    fields = {name: _load(value, tensors) for name, value in tree["fields"].items()}
    return RECORDS[tree["type"]](**fields)

"""The record beside weights that carry patches: which requests were met, in which order, on which weights.

`muwa_patch.json` lies in an edited folder, or beside an edited single file. It holds no tensor. It is bound
to the weights by a fingerprint of each edited file, and a record that does not fit them is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from muwa.json_files import read_json
from muwa.patch import names
from muwa.patch.apply import FORMAT as PATCH_FORMAT
from muwa.patch.apply import STATE, Patch, origin_of
from muwa.patch.files import read_file
from muwa.patch.weights import fingerprint_of_digests, is_weight, tensor_digest
from muwa.types.edit import Move
from muwa.types.request import Request

RECORD = "muwa_patch.json"
FORMAT = "muwa.patch.record/1"  # a record of an earlier version has fewer keys: no fingerprints of files


@dataclass(frozen=True)
class Ledger:
    """The record of one model; empty for weights that carry nothing.

    Args:
        path: The record's file.
        rows: What it holds of each patch, in the order in which they were put on.
        weights: Edited file -> fingerprint of all its weights, as they are now.
        removed: The patches that were taken off again: "sha256" and "when" of each.
        card: Whether README.md is an unlearning card: folders of earlier versions have a record only.
    """

    path: Path
    rows: tuple[Mapping[str, Any], ...] = ()
    weights: Mapping[str, str] | None = None
    removed: tuple[Mapping[str, Any], ...] = ()
    card: bool = False

    @property
    def requests(self) -> tuple[Request, ...]:
        """The requests that were met, in order."""
        return tuple(_request_of_row(row) for row in self.rows)

    def check(self) -> None:
        """Raise if the record does not fit the weights.

        Raises:
            ValueError: A file is missing, or its weights are not those that were written.
        """
        for name, wanted in (self.weights or {}).items():
            file = self.path.parent / name
            found = file_fingerprint(file) if file.is_file() else None
            if found != wanted:
                what = f"has the fingerprint {found[:12]}" if found else "is not there"
                raise ValueError(
                    f"{self.path}: does not fit the weights: {name} {what}, the record says {wanted[:12]}. "
                    "They were changed after the patch; delete the record to take them as they are"
                )


def read_ledger(place: Path) -> Ledger:
    """The record of a folder, or the one beside a single file that tells of that file.

    Raises:
        ValueError: It cannot be read.
    """
    path = (place.parent if place.is_file() else place) / RECORD
    if not path.is_file():
        return Ledger(path)
    try:
        found = read_json(path, dict, "the record of muwa's patches")
        rows = tuple(dict(row) for row in found["patches"])
        weights, removed = found.get("weights"), tuple(found.get("removed", ()))
        edited = {name for row in rows for name in row["edited"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a record of muwa's patches ({error})") from error
    if found.get("format") != FORMAT:
        raise ValueError(f"{path}: got the format {found.get('format')!r}, want {FORMAT!r}")
    if place.is_file() and place.name not in edited:
        return Ledger(path)
    return Ledger(path, rows, weights, removed, bool(found.get("card")))


def checked_ledger(place: Path) -> Ledger:
    """`read_ledger`, after `Ledger.check`."""
    ledger = read_ledger(place)
    ledger.check()
    return ledger


def requests_on(place: str | Path) -> tuple[Request, ...]:
    """The requests that the weights at a path carry, by their record; none for a name that is no path.

    Raises:
        ValueError: There is a record that cannot be read or does not fit the weights.
    """
    path = Path(place)
    return checked_ledger(path).requests if path.exists() else ()


def local_place(name: str) -> Path | None:
    """The file or folder of this machine with this name; None for a hub id.

    >>> local_place("."), local_place("ORG/NAME")
    (PosixPath('.'), None)
    """
    return Path(name) if Path(name).exists() else None


def text_of(rows: Sequence[Mapping[str, Any]], weights: Mapping[str, str], removed: Sequence[Any]) -> str:
    """The record's file."""
    content = {
        "format": FORMAT,
        "card": True,
        "patches": list(rows),
        "weights": dict(weights),
        "removed": list(removed),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _request_of_row(row: Mapping[str, Any]) -> Request:
    """A row of the record; those of an earlier version lack most fields."""
    story = row["story"]
    concepts = dict.fromkeys(move["concept"] for move in row["moves"])
    return Request(
        sha256=row["sha256"],
        base_fingerprint=row["base_fingerprint"],
        origin=row.get("origin", row["base_fingerprint"]),
        made_on=tuple(row.get("made_on", ())),
        task=row.get("task", story.get("task", "")),
        names=tuple(row.get("names", story.get("names", concepts))),
        method=row.get("method", story.get("method", "")),
        moves=tuple(Move(**move) for move in row["moves"]),
        tensors=tuple(row.get("tensors", ())),
        when=row.get("when", ""),
    )


def request_of(patch: Patch, sha256: str) -> Request:
    """What a patch says of the request that it met."""
    story = patch.provenance
    made = story.get("added", [story])  # several patches that were joined
    state = story.get(STATE, {})
    given = dict.fromkeys(name for one in made for name in one.get("names", ()))
    return Request(
        sha256=sha256,
        base_fingerprint=patch.base_fingerprint,
        origin=origin_of(patch),
        made_on=tuple(one["sha256"] for one in state.get("patches", ())),
        task=_only({one.get("task", "") for one in made}),
        names=tuple(given or dict.fromkeys(move.concept for move in patch.moves)),
        method=_only({one.get("method", "") for one in made}),
        moves=patch.moves,
        tensors=tuple(patch.deltas),
    )


def _only(values: set[str]) -> str:
    return values.pop() if len(values) == 1 else ""


def state_of(requests: Sequence[Request], edited: Iterable[str], base_fingerprint: str) -> dict[str, Any]:
    """What a new patch says of the weights that it is made on; for its provenance, under `STATE`.

    Args:
        requests: The requests that these weights carry.
        edited: The names of the tensors that the new patch edits.
        base_fingerprint: What the new patch is bound to.

    Returns:
        "origin": the fingerprint that the patch would be bound to on weights without these patches, or "" if
        that is not known; "patches": "sha256" and "tensors" of each.
    """
    parts = components(edited)
    before = [one for one in requests if components(one.tensors) & parts]
    same = next((one.origin for one in before if components(one.tensors) == parts), "")
    patches = [{"sha256": one.sha256, "tensors": list(one.tensors)} for one in requests]
    return {"origin": same if before else base_fingerprint, "patches": patches}


def components(tensors: Iterable[str]) -> frozenset[str]:
    """The components of a pipeline that tensors belong to; a CLIP alone counts as its first text encoder."""
    return frozenset(name.partition("/")[0] if "/" in name else names.ENCODERS[0] for name in tensors)


def tensor_keys(tensors: Iterable[str]) -> frozenset[str]:
    """Names by which the tensors of two patches can be compared, whichever library's names they have."""
    keys: set[str] = set()
    for name in tensors:
        component, slash, inner = (
            name.rpartition("/") if name.startswith(names.ENCODERS[1]) else ("", "", name)
        )
        try:
            full = [inner] if names.is_full_name(inner) else names.hf_names(inner)
        except KeyError:
            full = [inner]
        keys.update(f"{component}{slash}{one}" for one in full)
    return frozenset(keys)


def is_patch(path: Path) -> bool:
    """Whether a file is a muwa patch, whole or not."""
    try:
        with safe_open(path, "pt") as file:
            return PATCH_FORMAT in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_fingerprint(path: Path, changed: Mapping[str, Tensor] | None = None) -> str:
    """`muwa.patch.weights.weights_fingerprint` of a weight file, one tensor at a time.

    Args:
        changed: Tensors that stand in place of the file's own; each is cast to the dtype of its place.
    """
    changed = changed or {}
    digests: dict[str, str] = {}

    def add(name: str, stored: Tensor) -> None:
        tensor = changed[name].to(stored.dtype) if name in changed else stored
        if is_weight(name, tensor):
            digests[name] = tensor_digest(tensor)

    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                add(name, file.get_tensor(name))
    else:
        for name, tensor in read_file(path).items():
            add(name, tensor)
    return fingerprint_of_digests(digests)

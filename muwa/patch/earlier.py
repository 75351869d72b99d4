"""Patches that were made on top of others: which of those do the weights lack that they are put on?

A patch edits only its own tensors. If it is put on weights without the earlier ones, what these forgot is
known again. A checkpoint of the whole model is compared by the fingerprint of all weights. A part of a model,
such as a pipeline's text encoder, is compared by the tensors that the patch edits. Where the earlier patches
edited other tensors, only the record of the weights can tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muwa.json_files import read_json
from muwa.patch.apply import STATE, Patch
from muwa.patch.ledger import tensor_keys
from muwa.types.request import Request


@dataclass(frozen=True)
class Lacking:
    """Patches that another one was made on, and that the weights do not carry as far as is known.

    Args:
        patches: SHA-256 (hex) of each.
        checked: Whether it is certain; False for weights that have no record.
    """

    patches: tuple[str, ...]
    checked: bool

    def as_row(self) -> dict[str, Any]:
        """What the record holds of it."""
        return {"patches": list(self.patches), "checked": self.checked}


def absent(request: Request, on: Collection[str]) -> tuple[str, ...]:
    """SHA-256 of the patches that a patch was made on and that are not among those `on` the weights."""
    return tuple(sha for sha in request.made_on if sha not in on)


def not_shown_by(patch: Patch, absent: Sequence[str], compared: Collection[str]) -> tuple[str, ...]:
    """Those of the `absent` patches that the tensors of a later patch do not show to be there.

    Args:
        patch: The later patch. Its base holds the deltas of the earlier ones.
        compared: The names of its tensors whose base equals the weights.
    """
    keys = tensor_keys(compared)
    edited = {one["sha256"]: one["tensors"] for one in patch.provenance.get(STATE, {}).get("patches", ())}
    return tuple(sha for sha in absent if not keys & tensor_keys(edited.get(sha, ())))


def still_lacking(rows: Sequence[Mapping[str, Any]], number: int) -> Lacking | None:
    """What the record says that the patch of a row lacks, without those that were put on later."""
    row, on = rows[number].get("lacks"), {one["sha256"] for one in rows}
    if row is None or not (left := tuple(sha for sha in row["patches"] if sha not in on)):
        return None
    return Lacking(left, bool(row["checked"]))


def told(path: Path, where: object, lacking: Lacking) -> str:
    """What to tell the user before such a patch is put on: which are missing, what follows, what to do.

    Args:
        path: The patch file. results.json beside it names what the earlier patches forgot.
        where: What it is put on.
    """
    names = _names_beside(path)
    titles = [f"{names[sha]} (patch {sha[:12]})" if sha in names else sha[:12] for sha in lacking.patches]
    one = len(titles) == 1
    which = f"{'patch' if one else 'patches'} {', '.join(titles)}"
    state = (
        f"{where} does not carry {'it' if one else 'them'}"
        if lacking.checked
        else f"whether {where} carries {'it' if one else 'them'} could not be checked, as it has no record"
    )
    return (
        f"{path}: was made on top of {which}; {state}. Without {'it' if one else 'them'}, what "
        f"{'it' if one else 'they'} forgot is known again. To have all: put {'it' if one else 'them'} on "
        "first, then `add` this one: python -m muwa.patch add EARLIER PATCH MODEL --out DIR"
    )


def _names_beside(path: Path) -> dict[str, str]:
    """SHA-256 -> what it forgot, for the earlier patches that the results.json beside a patch lists."""
    results = path.with_name("results.json")
    if not results.is_file():
        return {}
    try:
        rows = read_json(results, dict, "the results.json of a run").get("requests", ())
        return {row["sha256"]: _printable(", ".join(row["names"])) for row in rows if row["names"]}
    except (ValueError, OSError, KeyError, TypeError):
        return {}


def _printable(text: str) -> str:
    return "".join(sign for sign in text if sign.isprintable())

"""A patch: an edit as a safetensors file. It can be applied, removed bit for bit, and joined with others.

    python -m muwa.patch apply PATCH BASE --out DIR        # BASE: a checkpoint, or the folder of a model
    python -m muwa.patch remove PATCH EDITED --out DIR     # the base again, bit for bit
    python -m muwa.patch add PATCH PATCH ... --out FILE    # several as one
    python -m muwa.patch show PATCH

The file holds `delta/<name>` (fp32) and `base/<name>` for each edited tensor. The base's tensors are needed
because subtraction does not undo a floating-point addition exactly. A patch is bound to its base by a
fingerprint of all weights, and any other base is refused. `muwa.patch.folders` handles folders that hold only
a part of the model, or that use the names of the other library. It compares the edited tensors themselves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.patch.weights import add_delta, equal, weights_fingerprint
from muwa.types.edit import Edit, Move
from muwa.weight_files.diagnosis import check_file

if TYPE_CHECKING:
    from muwa.models.base import Weighted

FORMAT = "muwa.patch/1"


@dataclass(frozen=True)
class Patch:
    """A patch file in memory.

    Args:
        deltas: Name -> what is added to the tensor, fp32.
        base: Name -> the unedited tensor, for the same names.
        base_fingerprint: Fingerprint of all weights of the base.
        moves: The layers and steps of the edit.
        provenance: How the edit was found; can be written as JSON. The file has it under the key "story".
    """

    deltas: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    base_fingerprint: str
    moves: tuple[Move, ...]
    provenance: Mapping[str, Any]


def write_patch(
    path: str | Path, edit: Edit, model: Weighted, provenance: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write an edit as a patch file. The same edit gives the same bytes.

    Args:
        model: The base of the patch: `patch_base(edit)` of the unedited model.
        provenance: How the edit was found; can be written as JSON. The rule and the reason of each search are
            added.
    """
    searches = [
        {"concept": s.concept, "rule": s.rule, "granularity": s.granularity, "why": s.why}
        for s in edit.searches
    ]
    base = {name: model.weights[name] for name in edit.deltas}
    provenance = {**provenance, "searches": searches}
    save_patch(Path(path), Patch(edit.deltas, base, model.weights_fingerprint, edit.moves, provenance))


def save_patch(path: Path, patch: Patch) -> None:
    """Write a patch file; it appears complete or not at all."""
    tensors = {f"delta/{name}": delta.float().cpu().contiguous() for name, delta in patch.deltas.items()}
    tensors |= {f"base/{name}": tensor.cpu().contiguous() for name, tensor in patch.base.items()}
    about = {
        "base_fingerprint": patch.base_fingerprint,
        "moves": [asdict(move) for move in patch.moves],
        "story": dict(patch.provenance),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    metadata = {FORMAT: json.dumps(about, sort_keys=True)}  # a single key, since the order of several varies
    save_file(tensors, draft, metadata=metadata)
    os.replace(draft, path)


def read_patch(path: Path) -> Patch:
    """Read a patch file.

    Raises:
        ValueError: The file is not a patch.
        FileNotFoundError: The file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such patch file; a run writes one to its folder: patch.safetensors"
        )
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    if FORMAT not in metadata:
        raise ValueError(
            f"{path}: not a muwa patch (its metadata has {sorted(metadata) or 'nothing'}, want {FORMAT!r})"
        )
    about = json.loads(metadata[FORMAT])

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    moves = tuple(Move(**move) for move in about["moves"])
    return Patch(below("delta/"), below("base/"), about["base_fingerprint"], moves, about["story"])


def apply_patch(weights: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The edited tensors: `fp32(base) + delta`, cast to the dtype of `weights`.

    Args:
        weights: All tensors of the base.

    Raises:
        ValueError: `weights` are not the patch's base (the message says what differs), or the patch is
            applied already.
    """
    fingerprint = weights_fingerprint(weights)
    if fingerprint == patch.base_fingerprint:
        return {name: add_delta(weights[name], delta) for name, delta in patch.deltas.items()}
    missing = [name for name in patch.deltas if name not in weights]
    if patch.deltas and not missing and _is_applied(weights, patch):
        raise ValueError("the patch is applied already: these weights are its base plus its delta")
    different = [
        name
        for name in patch.deltas
        if name in weights and not equal(weights[name], patch.base[name].to(weights[name].dtype))
    ]
    reason = f"{len(different)} of the {len(patch.deltas)} tensors to edit differ"
    if missing:
        reason = f"these weights have no {missing[0]}"
    raise ValueError(
        f"wrong base: its fingerprint is {fingerprint[:12]}, the patch was made for "
        f"{patch.base_fingerprint[:12]} ({reason}). "
        "To put several patches on one base, join them first: python -m muwa.patch add"
    )


def remove_patch(weights: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The original tensors, bit for bit, in the dtype of `weights`.

    Args:
        weights: All tensors of the edited model.

    Raises:
        ValueError: The patch is not applied to `weights`, or other tensors were changed too.
    """
    if not _is_applied(weights, patch):
        raise ValueError(
            "the patch is not on these weights: the tensors it touches are not its base plus its delta"
        )
    restored = {name: tensor.to(weights[name].dtype) for name, tensor in patch.base.items()}
    fingerprint = weights_fingerprint({**weights, **restored})
    if fingerprint != patch.base_fingerprint:
        raise ValueError(
            f"something else was changed too: without the patch the fingerprint is {fingerprint[:12]}, "
            f"the base's is {patch.base_fingerprint[:12]}"
        )
    return restored


def _is_applied(weights: Mapping[str, Tensor], patch: Patch) -> bool:
    return all(
        name in weights and equal(weights[name], add_delta(patch.base[name].to(weights[name].dtype), delta))
        for name, delta in patch.deltas.items()
    )


def add_patches(patches: Sequence[Patch]) -> Patch:
    """Join patches made for the same base. Deltas of the same tensor are added.

    Raises:
        ValueError: The patches were made for different bases.
    """
    bases = {patch.base_fingerprint for patch in patches}
    if len(bases) != 1:
        shown = ", ".join(sorted(base[:12] for base in bases))
        raise ValueError(f"the patches were made for {len(bases)} different bases: {shown}")
    deltas: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for patch in patches:
        for name, delta in patch.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        base |= patch.base
    moves = tuple(move for patch in patches for move in patch.moves)
    return Patch(deltas, base, bases.pop(), moves, {"added": [dict(patch.provenance) for patch in patches]})

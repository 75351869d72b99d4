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
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.drafts import new_file
from muwa.json_files import parse_json
from muwa.patch.weights import add_delta, equal, fingerprint_of_digests, tensor_digest, weights_fingerprint
from muwa.types.edit import Edit, Move
from muwa.types.short import short_repr
from muwa.weight_files.diagnosis import check_file

if TYPE_CHECKING:
    from muwa.models.base import Weighted

FORMAT = "muwa.patch/1"
STATE = "state"  # in a patch's provenance: which patches the weights carried that it was made on
# Said wherever a patch does not fit weights that carry others.
ADD = (
    "To put a patch on top of others: python -m muwa.patch add PATCH MODEL --out DIR. To join patches of one "
    "base: python -m muwa.patch add PATCH PATCH --out FILE"
)


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

    __repr__ = short_repr


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
    """Write a patch file; it appears complete or not at all.

    Raises:
        ValueError: The patch is not sound (`check_patch`).
    """
    check_patch(patch, str(path))
    tensors = {f"delta/{name}": delta.float().cpu().contiguous() for name, delta in patch.deltas.items()}
    tensors |= {f"base/{name}": tensor.cpu().contiguous() for name, tensor in patch.base.items()}
    about = {
        "base_fingerprint": patch.base_fingerprint,
        "content": _content(tensors),
        "moves": [asdict(move) for move in patch.moves],
        "story": dict(patch.provenance),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {FORMAT: json.dumps(about, sort_keys=True)}  # a single key, since the order of several varies
    with new_file(path) as draft:
        save_file(tensors, draft, metadata=metadata)


def _content(tensors: Mapping[str, Tensor]) -> str:
    """The digest of a patch file's tensors: both what is added and what it is added to."""
    return fingerprint_of_digests({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def check_patch(patch: Patch, where: str) -> None:
    """Raise if a patch cannot be one: for every tensor a finite delta and a base of the same shape.

    Args:
        where: The file, for the message.

    Raises:
        ValueError: Says which tensor is wrong.
    """
    for kind, have, want in (("base", patch.base, patch.deltas), ("delta", patch.deltas, patch.base)):
        if missing := sorted(set(want) - set(have)):
            raise ValueError(f"{where}: no {kind}/{missing[0]}; want a delta/ and a base/ for each tensor")
    for name, delta in patch.deltas.items():
        base = patch.base[name]
        if delta.shape != base.shape:
            raise ValueError(
                f"{where}: {name}: the delta has shape {tuple(delta.shape)}, the base {tuple(base.shape)}; "
                "want one shape"
            )
        for kind, tensor in (("delta", delta), ("base", base)):
            if not tensor.is_floating_point():
                raise ValueError(f"{where}: {kind}/{name}: got {tensor.dtype}, want floating point")
            if not tensor.isfinite().all():
                raise ValueError(f"{where}: {kind}/{name}: holds NaN or infinity; want finite numbers")


def _move(fields: Mapping[str, Any]) -> Move:
    """A move of the metadata. Raises TypeError if a field is missing, unknown or of another type."""
    move = Move(**fields)
    texts, numbers = (move.concept, move.tower, move.layer), (move.step, move.relative_norm)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("concept, tower and layer are texts")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        raise TypeError("step and relative_norm are finite numbers")
    return move


def read_patch(path: str | Path) -> Patch:
    """Read a patch file and check it whole.

    Raises:
        ValueError: The file is not a patch, is damaged, or is not sound (`check_patch`).
        FileNotFoundError: The file does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: a folder, want a patch file; the patch stands before the model")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such patch file; a run writes one to its folder: patch.safetensors"
        )
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise ValueError(
                    f"{path}: not a muwa patch (its metadata has {sorted(metadata) or 'nothing'}, want "
                    f"{FORMAT!r})"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    if unknown := [
        name for name in tensors if not name.isprintable() or not name.startswith(("delta/", "base/"))
    ]:
        raise ValueError(f"{path}: {unknown[0]!r}: want names that start with delta/ or base/")
    try:
        about = parse_json(metadata[FORMAT], f"{path}: its metadata", dict, "what muwa writes")
        moves = tuple(_move(move) for move in about["moves"])
        fingerprint, story = str(about["base_fingerprint"]), dict(about["story"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its metadata is not what muwa writes ({error!r})") from error

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    patch = Patch(below("delta/"), below("base/"), fingerprint, moves, story)
    check_patch(patch, str(path))
    if about.get("content", wanted := _content(tensors)) != wanted:
        raise ValueError(f"{path}: damaged: its tensors are not those that were written; get it again")
    return patch


def apply_patch(weights: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The edited tensors: `fp32(base) + delta`, cast to the dtype of `weights`.

    Args:
        weights: All tensors of the base.

    Raises:
        ValueError: `weights` are not the patch's base (the message says what differs); the patch is applied
            already; or its own copy of the base's tensors is false.
    """
    fingerprint = weights_fingerprint(weights)
    if fingerprint == patch.base_fingerprint:
        if false := _differing(weights, patch):
            raise ValueError(
                f"the patch's base/{false[0]} is not the tensor of the base it was made for, so the patch "
                "could not be removed again: the file is damaged"
            )
        return {name: add_delta(weights[name], delta) for name, delta in patch.deltas.items()}
    missing = [name for name in patch.deltas if name not in weights]
    if patch.deltas and not missing and _is_applied(weights, patch):
        raise ValueError("the patch is applied already: these weights are its base plus its delta")
    different = _differing(weights, patch)
    reason = f"{len(different)} of the {len(patch.deltas)} tensors to edit differ"
    if missing:
        reason = f"these weights have no {missing[0]}"
    raise ValueError(
        f"wrong base: its fingerprint is {fingerprint[:12]}, the patch was made for "
        f"{patch.base_fingerprint[:12]} ({reason}). {ADD}"
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


def _differing(weights: Mapping[str, Tensor], patch: Patch) -> list[str]:
    """The names of the patch's tensors that `weights` has with other values or another shape."""
    return [
        name
        for name in patch.deltas
        if name in weights and not equal(weights[name], patch.base[name].to(weights[name].dtype))
    ]


def _is_applied(weights: Mapping[str, Tensor], patch: Patch) -> bool:
    return all(
        name in weights and equal(weights[name], add_delta(patch.base[name].to(weights[name].dtype), delta))
        for name, delta in patch.deltas.items()
    )


def origin_of(patch: Patch) -> str:
    """The fingerprint of a patch's base without the patches that this base carried; "" if it is not known."""
    return str(patch.provenance.get(STATE, {}).get("origin", patch.base_fingerprint))


def add_patches(patches: Sequence[Patch]) -> Patch:
    """Join patches made for the same base. Deltas of the same tensor are added.

    A patch may also have been made on the base with others of them. The sum of deltas is rounded once, so
    that it may differ from the patches one after the other in the last bit.

    Raises:
        ValueError: The patches were made for different bases, or on a patch that is not among them.
    """
    bases = {origin_of(patch) for patch in patches}
    if len(bases) != 1:
        shown = ", ".join(sorted(base[:12] or "unknown" for base in bases))
        raise ValueError(f"the patches were made for {len(bases)} different bases: {shown}. {ADD}")
    deltas: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for patch in patches:
        before = patch.provenance.get(STATE, {}).get("patches", ())
        edited = {name for one in before for name in one["tensors"]}
        for name, delta in patch.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        base |= {name: tensor for name, tensor in patch.base.items() if name not in edited}
    if missing := [name for name in deltas if name not in base]:
        raise ValueError(
            f"{missing[0]}: none of the patches holds its original: they were made on weights that carried "
            "others. Give these too"
        )
    moves = tuple(move for patch in patches for move in patch.moves)
    return Patch(deltas, base, bases.pop(), moves, {"added": [dict(patch.provenance) for patch in patches]})

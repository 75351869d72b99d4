"""The edit as one safetensors file that can be applied elsewhere, taken back bit for bit, and added to others.

    python -m muwa.patch apply PATCH BASE --out DIR        # BASE: a checkpoint file, an open_clip, HF or diffusers folder
    python -m muwa.patch remove PATCH EDITED --out DIR     # the base again, bit for bit
    python -m muwa.patch add PATCH PATCH ... --out FILE    # several as one
    python -m muwa.patch show PATCH

Holds `delta/<name>` (fp32) and `base/<name>`: the bits of the touched tensors, since floating point addition cannot be
undone by subtraction. Bound to its base by a fingerprint of all weights: on any other it is refused. A pipeline's folder, or
one that spells the model as the other library does, is recognised by the bits of the touched tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.patch.folders import edited as _edited
from muwa.patch.folders import same as _same
from muwa.patch.weights import weights_fingerprint
from muwa.types.edit import Edit, Move

FORMAT = "muwa.patch/1"


@dataclass(frozen=True)
class Patch:
    """A patch file in memory. `deltas` are fp32; `base` holds the base's own bits of the same tensors."""

    deltas: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    base_fingerprint: str
    moves: tuple[Move, ...]
    story: Mapping[str, Any]


class Weighted(Protocol):
    """What an edit was made for: a `Clip`, or what `Diffusion.owner` gives."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Its tensors, at least those of the edit, under the names of the deltas."""

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of all its weights."""


def write_patch(path: str | Path, edit: Edit, model: Weighted, story: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write an edit as a patch: the same edit gives the same bytes.

    Args:
        model: The unedited model that the edit was made for.
        story: How it was found, JSON-able; searches' rules and reasons are added.
    """
    found = [{"concept": s.concept, "rule": s.rule, "granularity": s.granularity, "why": s.why} for s in edit.searches]
    kept = {name: model.weights[name] for name in edit.deltas}
    save_patch(
        Path(path), Patch(edit.deltas, kept, model.weights_fingerprint, edit.moves, {**story, "searches": found})
    )


def save_patch(path: Path, patch: Patch) -> None:
    """Write a patch file, whole or not at all."""
    tensors = {f"delta/{name}": delta.float().cpu().contiguous() for name, delta in patch.deltas.items()}
    tensors |= {f"base/{name}": tensor.cpu().contiguous() for name, tensor in patch.base.items()}
    about = {
        "base_fingerprint": patch.base_fingerprint,
        "moves": [asdict(move) for move in patch.moves],
        "story": dict(patch.story),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    save_file(
        tensors, draft, metadata={FORMAT: json.dumps(about, sort_keys=True)}
    )  # one key: the order of several varies
    os.replace(draft, path)


def read_patch(path: Path) -> Patch:
    """Read a patch file.

    Raises:
        ValueError: It is no patch.
        FileNotFoundError: It is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such patch file; a run writes one to its folder: patch.safetensors")
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

    def side(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    moves = tuple(Move(**row) for row in about["moves"])
    return Patch(side("delta/"), side("base/"), about["base_fingerprint"], moves, about["story"])


def apply_patch(weights: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The edited tensors, in the dtype of `weights`: `fp32(base) + delta`, cast back.

    Raises:
        ValueError: `weights` are not the base that the patch was made for; says what differs, or that it is applied.
    """
    found = weights_fingerprint(weights)
    if found == patch.base_fingerprint:
        return {name: _edited(weights[name], delta) for name, delta in patch.deltas.items()}
    missing = [name for name in patch.deltas if name not in weights]
    if patch.deltas and not missing and _is_applied(weights, patch):
        raise ValueError("the patch is applied already: these weights are its base plus its delta")
    touched = [n for n in patch.deltas if n in weights and not _same(weights[n], patch.base[n].to(weights[n].dtype))]
    where = (
        f"it has no {missing[0]}" if missing else f"{len(touched)} of the {len(patch.deltas)} tensors to edit differ"
    )
    raise ValueError(
        f"wrong base: its fingerprint is {found[:12]}, the patch was made for {patch.base_fingerprint[:12]} ({where}). "
        "To put several patches on one base, join them first: python -m muwa.patch add"
    )


def remove_patch(weights: Mapping[str, Tensor], patch: Patch) -> dict[str, Tensor]:
    """The base's own bits of the touched tensors, in the dtype of `weights`.

    Raises:
        ValueError: The patch is not what changed these tensors, or other tensors were changed too.
    """
    if not _is_applied(weights, patch):
        raise ValueError("the patch is not on these weights: the tensors it touches are not its base plus its delta")
    restored = {name: tensor.to(weights[name].dtype) for name, tensor in patch.base.items()}
    found = weights_fingerprint({**weights, **restored})
    if found != patch.base_fingerprint:
        raise ValueError(
            f"something else was changed too: without the patch the fingerprint is {found[:12]}, "
            f"the base's is {patch.base_fingerprint[:12]}"
        )
    return restored


def _is_applied(weights: Mapping[str, Tensor], patch: Patch) -> bool:
    return all(
        name in weights and _same(weights[name], _edited(patch.base[name].to(weights[name].dtype), delta))
        for name, delta in patch.deltas.items()
    )


def add_patches(patches: Sequence[Patch]) -> Patch:
    """Several patches of one base as one: deltas of a shared tensor are summed.

    Raises:
        ValueError: They were made for different bases.
    """
    bases = {patch.base_fingerprint for patch in patches}
    if len(bases) != 1:
        raise ValueError(
            f"the patches were made for {len(bases)} different bases: {', '.join(sorted(b[:12] for b in bases))}"
        )
    deltas: dict[str, Tensor] = {}
    base: dict[str, Tensor] = {}
    for patch in patches:
        for name, delta in patch.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        base |= patch.base
    moves = tuple(move for patch in patches for move in patch.moves)
    return Patch(deltas, base, bases.pop(), moves, {"added": [dict(patch.story) for patch in patches]})

"""A patch in folders that hold only a part of its model or spell it otherwise: diffusers pipelines, the other library.

A patch is bound to its base here by the bits of the tensors that it touches: the rest of its model may not be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from muwa.patch import names
from muwa.patch.weights import HALVES, find_checkpoint, read_some, rewrite_files, tensor_names

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors|bin)[\w-]+?))?"
    r"(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
Files = list[Path]  # that hold one set of weights


def is_pipeline(base: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (base / "model_index.json").is_file()


def spells_otherwise(base: Path, touched: Iterable[str]) -> bool:
    """Whether a checkpoint lacks a touched name, but keeps that tensor under the other library's name or below a level."""
    there = {name for path in find_checkpoint(base) for name in tensor_names(path)}
    wanted = [name for name in touched if name not in there]
    try:
        names.homes(_full_names(wanted), there)
    except (KeyError, ValueError):
        return False
    return bool(wanted)


def change(base: Path, out: Path, deltas: Mapping[str, Tensor], bits: Mapping[str, Tensor], *, back: bool) -> int:
    """Copy `base` to the new folder `out` with the deltas added (`back`: taken off); `out` appears whole or not at all.

    Args:
        base: A pipeline's folder, of which every variant in every component concerned is changed, or a checkpoint.
        deltas: "text_encoder_2/<clip name>", "unet/<name>" or, of the first text encoder, the CLIP's own name.
        bits: The base's tensors under the same names.

    Returns:
        How many tensors of files were changed.

    Raises:
        ValueError: A file's tensors are not those the patch was made for; they are edited already, or not at all.
        KeyError: It lacks a tensor that is to be edited.
        FileNotFoundError: A component has no weights that can be changed: says what was looked for.
    """
    changes: dict[Path, dict[str, Tensor]] = {}
    dropped: Files = []
    if is_pipeline(base):
        of_bits = names.by_component(bits)
        for component, own in names.by_component(deltas).items():
            sets, twins = variants(base / component)
            dropped += twins
            for files in sets:
                changes |= _changes(files, own, of_bits[component], component in names.ENCODERS, back)
    else:
        changes = _changes(find_checkpoint(base), deltas, bits, True, back)
    rewrite_files(base, out, changes, dropped)
    return sum(map(len, changes.values()))


def variants(folder: Path) -> tuple[list[Files], Files]:
    """The weight files of a pipeline's component by variant (none, "fp16", ...), and pickled twins of safetensors files.

    Raises:
        FileNotFoundError: There are none, or shards are missing.
        ValueError: They are pickled and in shards.
    """
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    found: dict[str, dict[str, Files]] = {}
    for name in there if isinstance(there, list) else []:
        if match := _WEIGHTS.fullmatch(name):
            found.setdefault(match["variant"] or "", {}).setdefault(match["kind"], []).append(folder / name)
    if not found:
        raise FileNotFoundError(
            f"{folder}: looked for diffusion_pytorch_model.safetensors, model.safetensors, their variants "
            f"(model.fp16.safetensors), shards or .bin twins; found {there if isinstance(there, str) else there[:8]}"
        )
    sets = [kinds.get("safetensors") or kinds["bin"] for kinds in found.values()]
    for files in sets:
        shards = [int(n) for path in files for n in re.findall(r"-of-(\d+)\.", path.name)]
        if shards and len(files) != shards[0]:
            raise FileNotFoundError(f"{folder}: {len(files)} of the {shards[0]} shards of {files[0].name} are there")
        if shards and files[0].suffix == ".bin":
            raise ValueError(f"{files[0]}: pickled weights in shards; save them as safetensors first")
    return sets, [path for kinds in found.values() if "safetensors" in kinds for path in kinds.get("bin", [])]


def _full_names(clip_names: Iterable[str]) -> list[str]:
    out: list[str] = []
    for name in clip_names:
        out += [name] if names.is_full(name) else names.hf_names(name)
    return out


def _changes(
    files: Files, deltas: Mapping[str, Tensor], bits: Mapping[str, Tensor], clip: bool, back: bool
) -> dict[Path, dict[str, Tensor]]:
    """The changed tensors of one set of weight files. `clip`: the names are a CLIP's, in either spelling."""
    home = {name: path for path in files for name in tensor_names(path)}
    where = f"{files[0].parent.name}/{files[0].name}"
    try:
        if clip:
            deltas, bits = names.full(deltas), names.full(bits)
            places = names.homes(deltas, home)
        else:
            places = {name: name for name in deltas}
            if missing := [name for name in deltas if name not in home]:
                raise KeyError(f"{missing[0]}: not in this model ({len(missing)} of the patch's are missing)")
    except KeyError as error:
        raise KeyError(f"{where}: {error.args[0]}") from None
    own = set(places.values())
    stored = {name: t for path in files for name, t in read_some(path, own & set(tensor_names(path))).items()}
    now = (
        names.full(stored)
        if clip and names.is_open_clip(own)
        else {name: stored[home] for name, home in places.items()}
    )
    changed = _replaced(now, deltas, bits, back, where)
    new = (
        names.put_back(changed, stored)
        if clip and names.is_open_clip(own)
        else {places[n]: t for n, t in changed.items()}
    )
    out: dict[Path, dict[str, Tensor]] = {}
    for name, tensor in new.items():
        out.setdefault(home[name], {})[name] = tensor
    return out


def _replaced(
    now: Mapping[str, Tensor], deltas: Mapping[str, Tensor], bits: Mapping[str, Tensor], back: bool, where: str
) -> dict[str, Tensor]:
    """The base's tensors with the deltas, or (`back`) without them, in the dtype of `now`.

    The base is the patch's own, perhaps once rounded to half precision, as `muwa.models.diffusion.text_encoders.same_bits` lets it pass.

    Raises:
        ValueError: `now` is neither, or what is asked for already.
    """
    base = {name: _rounded(bits[name], now[name], deltas[name], back) for name in deltas}
    after = {name: edited(base[name], delta) for name, delta in deltas.items()}
    other = [name for name in deltas if not same(now[name], base[name])]
    applied = all(same(now[name], after[name]) for name in deltas)
    if back and not applied:
        raise ValueError(f"the patch is not on {where}: the tensors it touches are not its base plus its delta")
    if not back and other:
        if applied:
            raise ValueError(f"the patch is applied already: {where} is its base plus its delta")
        raise ValueError(
            f"wrong base: {len(other)} of the {len(deltas)} tensors to edit differ in {where} from those the patch was made "
            f"for ({other[0]})"
        )
    return base if back else after


def _rounded(bits: Tensor, now: Tensor, delta: Tensor, back: bool) -> Tensor:
    """`bits` in the dtype of `now`, of the ways to round them that which `now` is, or (`back`) is with the delta."""
    ways = [bits.to(dtype).to(now.dtype) for dtype in (now.dtype, *HALVES)]
    return next((way for way in ways if same(now, edited(way, delta) if back else way)), ways[0])


def edited(base: Tensor, delta: Tensor) -> Tensor:
    """What a tensor is after a delta, in the base's dtype: `fp32(base) + delta`, cast back."""
    return (base.float() + delta.to(base.device)).to(base.dtype)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape, one dtype and equal values."""
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())

"""Patches on folders that hold only a part of the model, or that name tensors as the other library does.

The libraries are open_clip and Hugging Face. There are three kinds: diffusers pipelines; models with a CLIP's
tower under another name prefix; and CLIPs where the folder has Hugging Face's names and the patch
open_clip's, or the reverse. The fingerprint of all weights cannot be compared there. So a patch is
bound to the exact bits of the tensors that it edits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from muwa.patch import names
from muwa.patch.apply import Patch
from muwa.patch.files import find_checkpoint, read_tensors, rewrite_files, tensor_names
from muwa.patch.weights import HALVES, add_delta, equal

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors|bin)[\w-]+?))?"
    r"(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
Files = list[Path]  # the files of one set of weights: one file, or its shards


def is_pipeline(base: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (base / "model_index.json").is_file()


def has_other_names(base: Path, edited: Iterable[str]) -> bool:
    """Whether a checkpoint holds the edited tensors under names that differ from the patch's.

    Args:
        edited: The names in the patch.
    """
    there = {name for path in find_checkpoint(base) for name in tensor_names(path)}
    missing = [name for name in edited if name not in there]
    try:
        names.target_names_of(_full_names(missing), there)
    except (KeyError, ValueError):
        return False
    return bool(missing)


def _full_names(clip_names: Iterable[str]) -> list[str]:
    out: list[str] = []
    for name in clip_names:
        out += [name] if names.is_full_name(name) else names.hf_names(name)
    return out


@dataclass(frozen=True)
class _Part:
    """One set of weight files, and the part of a patch that is for them.

    Args:
        clip: Whether the names are a CLIP's, from either library.
    """

    files: Files
    deltas: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    clip: bool

    @property
    def where(self) -> str:
        """The files, for messages."""
        return f"{self.files[0].parent.name}/{self.files[0].name}"


def rewrite_folder(base: Path, out: Path, patch: Patch, *, remove: bool) -> int:
    """Copy `base` to the new folder `out` with the patch applied or removed.

    `out` appears complete or not at all.

    Args:
        base: The folder of a pipeline, or a checkpoint. All variants of an edited component are changed.
        patch: Its keys are "text_encoder_2/<CLIP name>", "unet/<name>", or a CLIP's name for the first text
            encoder.
        remove: Remove the patch instead of applying it.

    Returns:
        The number of tensors changed, over all files.

    Raises:
        ValueError: A tensor is not the patch's base; or the patch is applied already (with `remove`: is not
            applied).
        KeyError: A tensor to edit is missing.
        FileNotFoundError: A component has no weights that can be changed. The message lists what was looked
            for.
    """
    parts, dropped = _parts(base, patch)
    changes: dict[Path, dict[str, Tensor]] = {}
    for part in parts:
        changes |= _changed_by_file(part, remove)
    rewrite_files(base, out, changes, dropped)
    return sum(map(len, changes.values()))


def _parts(base: Path, patch: Patch) -> tuple[list[_Part], Files]:
    """(The sets of weight files with their part of the patch, files to leave out of the copy)."""
    if not is_pipeline(base):
        return [_Part(find_checkpoint(base), patch.deltas, patch.base, clip=True)], []
    parts: list[_Part] = []
    dropped: Files = []
    bases = names.by_component(patch.base)
    for component, deltas in names.by_component(patch.deltas).items():
        sets, pickled = variants(base / component)
        parts += [_Part(files, deltas, bases[component], component in names.ENCODERS) for files in sets]
        dropped += pickled
    return parts, dropped


def variants(folder: Path) -> tuple[list[Files], Files]:
    """The weight files of one component of a pipeline.

    Returns:
        (the files of each variant: the plain one, "fp16", ...; the pickled files of variants that also have
        safetensors files).

    Raises:
        FileNotFoundError: There are none, or shards are missing.
        ValueError: They are pickled and in shards.
    """
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    by_variant: dict[str, dict[str, Files]] = {}
    for name in there:
        if match := _WEIGHTS.fullmatch(name):
            kinds = by_variant.setdefault(match["variant"] or "", {})
            kinds.setdefault(match["kind"], []).append(folder / name)
    if not by_variant:
        raise FileNotFoundError(
            f"{folder}: looked for diffusion_pytorch_model.safetensors, model.safetensors, their variants "
            f"(model.fp16.safetensors), shards or .bin twins; "
            f"found {there[:8] if folder.is_dir() else 'no such folder'}"
        )
    sets = [kinds.get("safetensors") or kinds["bin"] for kinds in by_variant.values()]
    for files in sets:
        shards = [int(n) for path in files for n in re.findall(r"-of-(\d+)\.", path.name)]
        if shards and len(files) != shards[0]:
            raise FileNotFoundError(
                f"{folder}: {len(files)} of the {shards[0]} shards of {files[0].name} are there"
            )
        if shards and files[0].suffix == ".bin":
            raise ValueError(f"{files[0]}: pickled weights in shards; save them as safetensors first")
    beside = [kinds.get("bin", []) for kinds in by_variant.values() if "safetensors" in kinds]
    return sets, [path for files in beside for path in files]


def _changed_by_file(part: _Part, remove: bool) -> dict[Path, dict[str, Tensor]]:
    """Weight file -> its changed tensors, by the names in the file."""
    path_of = {name: path for path in part.files for name in tensor_names(path)}
    deltas, base, stored_names = _located(part, path_of)
    stored_set = set(stored_names.values())
    stored = {
        name: tensor
        for path in part.files
        for name, tensor in read_tensors(path, stored_set & set(tensor_names(path))).items()
    }
    if part.clip and names.is_open_clip(stored_set):  # one stored tensor may hold q, k and v
        new = names.write_back(
            _new_values(names.to_full_names(stored), deltas, base, remove, part.where), stored
        )
    else:
        current = {name: stored[stored_names[name]] for name in deltas}
        changed = _new_values(current, deltas, base, remove, part.where)
        new = {stored_names[name]: tensor for name, tensor in changed.items()}
    out: dict[Path, dict[str, Tensor]] = {}
    for name, tensor in new.items():
        out.setdefault(path_of[name], {})[name] = tensor
    return out


def _located(
    part: _Part, stored: Iterable[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor], Mapping[str, str]]:
    """(Deltas, base tensors, name in the patch -> name in the file) of a part. A CLIP's are under full names.

    Args:
        stored: All names in the files.

    Raises:
        KeyError: The files lack a tensor.
    """
    try:
        if part.clip:
            deltas = names.to_full_names(part.deltas)
            return deltas, names.to_full_names(part.base), names.target_names_of(deltas, stored)
        there = set(stored)
        if missing := [name for name in part.deltas if name not in there]:
            raise KeyError(
                f"{missing[0]}: not in this model ({len(missing)} of the patch's tensors are missing)"
            )
    except KeyError as error:
        raise KeyError(f"{part.where}: {error.args[0]}") from None
    return part.deltas, part.base, {name: name for name in part.deltas}


def _new_values(
    current: Mapping[str, Tensor],
    deltas: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    remove: bool,
    where: str,
) -> dict[str, Tensor]:
    """The base's tensors with the deltas (with `remove`, without them), in the dtype of `current`.

    `current` may be the base rounded to half precision, as `muwa.patch.weights.same_bits` allows.

    Raises:
        ValueError: `current` is neither the base nor the base plus the deltas; or the patch is applied
            already (with `remove`: is not applied).
    """
    rounded = {name: _rounded(base[name], current[name], deltas[name], remove) for name in deltas}
    edited = {name: add_delta(rounded[name], delta) for name, delta in deltas.items()}
    different = [name for name in deltas if not equal(current[name], rounded[name])]
    applied = all(equal(current[name], edited[name]) for name in deltas)
    if remove and not applied:
        raise ValueError(
            f"the patch is not on {where}: the tensors it touches are not its base plus its delta"
        )
    if not remove and different:
        if applied:
            raise ValueError(f"the patch is applied already: {where} is its base plus its delta")
        raise ValueError(
            f"wrong base: {len(different)} of the {len(deltas)} tensors to edit differ in {where} from those "
            f"the patch was made for ({different[0]})"
        )
    return rounded if remove else edited


def _rounded(base: Tensor, current: Tensor, delta: Tensor, remove: bool) -> Tensor:
    """`base` cast to the dtype of `current`: directly, or via the half precision that gives `current`.

    With `remove`, it is the cast that gives `current` when the delta is added.
    """
    casts = [base.to(dtype).to(current.dtype) for dtype in (current.dtype, *HALVES)]
    return next((x for x in casts if equal(current, add_delta(x, delta) if remove else x)), casts[0])

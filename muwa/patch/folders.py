"""Patches on weight files that hold only a part of the model, or that have other names for its tensors.

There are four kinds: diffusers pipelines; single files of Stable Diffusion (`muwa.patch.layouts`); models
with a CLIP's tower under another name prefix; and CLIPs where the file has Hugging Face's names and the patch
open_clip's, or the reverse. The fingerprint of all weights cannot be compared there. So a patch is bound to
the exact bits of the tensors that it edits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from muwa.patch import names
from muwa.patch.files import find_checkpoint, read_tensors, tensor_names
from muwa.patch.layouts import Section, sections, unet_names
from muwa.patch.rewrite import Rewrite
from muwa.types.short import short_repr

_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<variant>(?!safetensors|bin)[\w-]+?))?"
    r"(?:-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
Files = list[Path]  # the files of one set of weights: one file, or its shards
Changes = dict[Path, dict[str, Tensor]]  # weight file -> its changed tensors, by the names in the file


def is_pipeline(base: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (base / "model_index.json").is_file()


def has_other_names(files: Files, edited: Iterable[str]) -> bool:
    """Whether weight files hold the edited tensors under names that differ from the patch's.

    Args:
        edited: The names in the patch.
    """
    there = {name for path in files for name in tensor_names(path)}
    missing = [name for name in edited if name not in there]
    if missing and sections(there):
        return True
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
class Part:
    """One set of weight files, and the part of a change that is for one component in them.

    Args:
        files: One file, or the shards of one set of weights.
        section: The component in the files, and the names of its tensors there.
        rewrite: That component's part of the change, by the names in the patches.
    """

    files: Files
    section: Section
    rewrite: Rewrite

    __repr__ = short_repr

    @property
    def where(self) -> str:
        """The files, for messages."""
        return f"{self.files[0].parent.name}/{self.files[0].name}"

    @property
    def clip(self) -> bool:
        """Whether the names are a CLIP's, from either library."""
        return self.section.component in names.ENCODERS


def required_parts(base: Path, rewrite: Rewrite) -> list[Part]:
    """The parts of a pipeline's folder, or of a checkpoint with other names, that the patches must fit.

    Of a component with several variants it is the plain one, which is loaded if nothing else is asked for.

    Raises:
        KeyError: A component is missing.
        FileNotFoundError: A component has no weights that can be changed. The message lists what was looked
            for.
    """
    if is_pipeline(base):
        chosen = {one: variants(base / one)[0][0] for one in names.by_component(rewrite.base)}
        return [
            part
            for one, files in chosen.items()
            for part in parts_of(files, stored_names(files), one, rewrite)
        ]
    files = find_checkpoint(base)
    parts = [p for p in parts_of(files, stored_names(files), None, rewrite) if not p.section.average]
    if missing := set(names.by_component(rewrite.base)) - {part.section.component for part in parts}:
        raise KeyError(
            f"{base}: holds no {', '.join(sorted(missing))}, which the patch edits; give the pipeline's "
            "folder, or the single file of the whole pipeline"
        )
    return parts


def stored_names(files: Files) -> list[str]:
    """The names of all tensors in some weight files."""
    return [name for path in files for name in tensor_names(path)]


def parts_of(files: Files, stored: Iterable[str], component: str | None, rewrite: Rewrite) -> list[Part]:
    """What each component of a change could change in weight files.

    Args:
        stored: The names of all tensors in the files.
        component: Whose weights they are, if that is known; else it is found from the names, and the file of
            one component may be any component's.
    """
    stored = list(stored)
    components = list(names.by_component(rewrite.base))
    found = [] if component else sections(stored)
    if not found:
        ldm, inner = unet_names(stored), {name: name for name in stored}
        found = [
            Section(one, ldm if one == "unet" and "conv_in.weight" in ldm else inner)
            for one in ([component] if component else components)
        ]
    return [
        Part(files, section, rewrite.of(section.component))
        for section in found
        if section.component in components
    ]


def variants(folder: Path) -> tuple[list[Files], Files]:
    """The weight files of one component of a pipeline.

    Returns:
        (the files of each variant, the plain one first: "", "fp16", ...; the pickled files of variants that
        also have safetensors files).

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
    sets = [kinds.get("safetensors") or kinds["bin"] for _, kinds in sorted(by_variant.items())]
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


def changed_by_file(part: Part) -> Changes:
    """The changed tensors of a part.

    Raises:
        KeyError: The files lack a tensor that is to be changed.
        ValueError: As `Rewrite.new_values`.
    """
    path_of = {name: path for path in part.files for name in tensor_names(path)}
    file_name = part.section.stored
    rewrite, name_of = _located(part)
    wanted = {file_name[name] for name in name_of.values()}
    values = {
        name: tensor
        for path in part.files
        for name, tensor in read_tensors(path, {n for n in wanted if path_of[n] == path}).items()
    }
    stored = {name: values[file_name[name]] for name in name_of.values()}
    renamed = any(name != own for name, own in name_of.items())
    if part.clip and renamed and names.is_open_clip(stored):  # one stored tensor may hold q, k and v
        new = names.write_back(rewrite.new_values(names.to_full_names(stored), part.where), stored)
    else:
        changed = rewrite.new_values({name: stored[name_of[name]] for name in rewrite.base}, part.where)
        new = {name_of[name]: tensor for name, tensor in changed.items()}
    out: Changes = {}
    for name, tensor in new.items():
        out.setdefault(path_of[file_name[name]], {})[file_name[name]] = tensor
    return out


def _located(part: Part) -> tuple[Rewrite, Mapping[str, str]]:
    """(The change, name in it -> name in the section), under full names if they differ.

    Raises:
        KeyError: The section lacks a tensor.
    """
    there, edited = part.section.stored, part.rewrite.base
    if all(name in there for name in edited):
        return part.rewrite, {name: name for name in edited}
    try:
        if part.clip:
            full = part.rewrite.with_full_names()
            return full, names.target_names_of(full.base, there)
    except KeyError as error:
        raise KeyError(f"{part.where}: {error.args[0]}") from None
    missing = [name for name in edited if name not in there]
    raise KeyError(
        f"{part.where}: {missing[0]}: not in this model ({len(missing)} of the patch's tensors are missing)"
    )


def holds_some(part: Part) -> bool:
    """Whether the files of a part have any of the tensors that are to be changed, whatever their values."""
    for name in part.rewrite.base:
        try:
            _located(Part(part.files, part.section, part.rewrite.only(name)))
        except (KeyError, ValueError):
            continue
        return True
    return False

"""Other weight files in a model's folder that hold the tensors which a patch edits.

A folder on the hub often holds its weights several times: in half precision, pickled, in the formats of other
libraries, or as single files of the whole pipeline. Who loads an unedited one has the concept back. So
`apply` edits those that it can edit exactly, and leaves the others out of its copy, each with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch

from muwa.json_files import read_json
from muwa.patch.files import safetensors_name
from muwa.patch.folders import (
    Changes,
    Files,
    changed_by_file,
    holds_some,
    is_pipeline,
    parts_of,
    stored_names,
)
from muwa.patch.rewrite import Rewrite

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Formats that hold weights and that muwa does not write.
FOREIGN = {
    ".msgpack": "Flax weights",
    ".h5": "TensorFlow weights",
    ".pb": "TensorFlow weights",
    ".onnx": "an ONNX model",
    ".onnx_data": "an ONNX model's weights",
    ".data": "an ONNX model's weights",
    ".gguf": "GGUF weights",
    ".ot": "Rust weights",
    ".tflite": "a TensorFlow Lite model",
    ".npz": "NumPy weights",
    ".pdparams": "Paddle weights",
    ".engine": "a TensorRT engine",
    ".plan": "a TensorRT engine",
}
_SHARD = re.compile(r"(?P<stem>.+)-\d+-of-(?P<count>\d+)(?P<suffix>\.\w+)")
UNREADABLE = "pickled, and cannot be read without running its code"
_HISTORY = (".git", ".hg")


@dataclass
class Twins:
    """What was found beside the weights that a patch must fit.

    Args:
        changes: Weight files that the patch fits too, with their changed tensors.
        unedited: File or folder -> why it cannot be edited though it may hold the edited tensors.
    """

    changes: Changes = field(default_factory=dict)
    unedited: dict[Path, str] = field(default_factory=dict)


def find_twins(
    base: Path, rewrite: Rewrite, edited: Collection[Path], known: Collection[Path], always: Rewrite
) -> Twins:
    """Look through a model's folder for other files that hold the tensors which are to be changed.

    A component of a pipeline that is not changed is not looked at.

    Args:
        base: The folder of a model. Anything else has no twins.
        rewrite: The change. If it takes a patch off, files that do not have the patch are left as they are.
        edited: The weight files that are changed already.
        known: Files that have the same patches as the weights, by the record of the folder.
        always: The change of those files.
    """
    twins = Twins()
    if not base.is_dir() or not rewrite.base:
        return twins
    for name in _HISTORY:
        if (base / name).is_dir():
            twins.unedited[base / name] = "the repository's history, which holds the original weights"
    components = _components(base)
    for files in _sets(base, twins.unedited):
        inside = [name for name in files[0].relative_to(base).parts[:-1] if name in components]
        component = inside[-1] if inside else None
        if set(files) & set(edited) or (component and component not in _edited_components(rewrite)):
            continue
        _look_at(files, component, always if set(files) <= set(known) else rewrite, twins)
    if rewrite.takes_off:
        twins.unedited.clear()
    return twins


def _edited_components(rewrite: Rewrite) -> set[str]:
    return {name.partition("/")[0] if "/" in name else "text_encoder" for name in rewrite.base}


def _components(base: Path) -> set[str]:
    """The folders that a pipeline's index names."""
    if not is_pipeline(base):
        return set()
    named = read_json(base / "model_index.json", dict, "the index of a pipeline")
    return {name for name, kind in named.items() if isinstance(kind, list)}


def _sets(base: Path, without: Mapping[Path, str]) -> Iterator[Files]:
    """The files of a folder at any depth; the shards of one set of weights together."""
    shards: dict[tuple[Path, str, str], Files] = {}
    for path in sorted(base.rglob("*")):
        if not path.is_file() or any(parent in without for parent in path.parents):
            continue
        if match := _SHARD.fullmatch(path.name):
            shards.setdefault((path.parent, match["stem"], match["count"]), []).append(path)
        else:
            yield [path]
    yield from shards.values()


def _look_at(files: Files, component: str | None, rewrite: Rewrite, twins: Twins) -> None:
    """Add one set of files to `twins`, if it holds the edited tensors."""
    suffix = files[0].suffix
    smallest = min(tensor.numel() for tensor in rewrite.base.values())
    if sum(path.stat().st_size for path in files) < smallest / 2:  # too small even at four bits a number
        return
    if suffix == ".safetensors" or (suffix in PICKLED and _can_become_safetensors(files)):
        changes, reason = _fitted(files, component, rewrite)
        twins.changes |= changes
    elif suffix in PICKLED:
        reason = _pickled(files, component, rewrite)
    else:
        reason = FOREIGN.get(suffix)
    if reason:
        indices = [path.parent / f"{_stem(path)}.index.json" for path in files]
        twins.unedited |= dict.fromkeys([*files, *(p for p in indices if p.is_file())], reason)


def _can_become_safetensors(files: Files) -> bool:
    """Whether a pickled file is the only one of its weights: then its edited copy is a safetensors file."""
    (path, *shards) = files
    return not shards and not path.with_name(safetensors_name(path)).exists()


def _stem(path: Path) -> str:
    match = _SHARD.fullmatch(path.name)
    return match["stem"] + match["suffix"] if match else path.name


def _fitted(files: Files, component: str | None, rewrite: Rewrite) -> tuple[Changes, str | None]:
    """(The changed tensors of safetensors files, why some of the edited tensors cannot be changed there)."""
    changes: Changes = {}
    reasons: list[str] = []
    try:
        parts = parts_of(files, stored_names(files), component, rewrite)
    except ValueError:
        return {}, UNREADABLE if files[0].suffix in PICKLED else "cannot be read"
    for part in parts:
        if not holds_some(part):
            continue
        try:
            for path, tensors in changed_by_file(part).items():
                changes.setdefault(path, {}).update(tensors)
        except (KeyError, ValueError):
            which = "averaged weights" if part.section.average else "weights"
            reasons.append(f"holds other {which} of {part.section.component} than the patch was made for")
    return changes, "; ".join(reasons) or None


def _pickled(files: Files, component: str | None, rewrite: Rewrite) -> str | None:
    """Why pickled files are a danger; None if they cannot hold the edited tensors."""
    stored: set[str] = set()
    for path in files:
        try:
            tree = torch.load(path, map_location="meta", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError, OSError):
            return UNREADABLE
        tree = tree.get("state_dict", tree) if isinstance(tree, dict) else {}
        stored |= {str(name).removeprefix("module.") for name in tree}
    held = [part for part in parts_of(files, stored, component, rewrite) if holds_some(part)]
    return "pickled weights with the original tensors" if held else None

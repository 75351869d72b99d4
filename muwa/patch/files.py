"""Weight files without a model: find them, read them, and copy them with some tensors replaced."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.drafts import draft_of, file_mode, raise_with_path
from muwa.json_files import read_json
from muwa.weight_files.diagnosis import check_file, is_patch
from muwa.weight_files.reading import plain_names, read_tree

_PICKLED = (".pt", ".pth", ".bin")
CKPT = (
    "{path}: a .ckpt file is a pickle, which can run code when it is read; muwa reads safetensors. Most are "
    'published as .safetensors too; to convert one: python -c "import torch, safetensors.torch as s; '
    "t = torch.load('FILE.ckpt', map_location='cpu', weights_only=True); t = t.get('state_dict', t); "
    "s.save_file({{k: v.contiguous().clone() for k, v in t.items() if hasattr(v, 'shape')}}, "
    "'FILE.safetensors')\""
)
_SINGLE = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_INDEX = "model.safetensors.index.json"


def find_checkpoint(base: Path) -> list[Path]:
    """The weight files of `base`: a file, or an open_clip or Hugging Face folder, which may have shards.

    Raises:
        FileNotFoundError: There are none, or shards are missing. The message lists what was looked for.
    """
    if base.is_file():
        if base.suffix == ".ckpt":
            raise FileNotFoundError(CKPT.format(path=base))
        if base.suffix != ".safetensors" and base.suffix not in _PICKLED:
            raise FileNotFoundError(
                f"{base}: want a .safetensors, .pt, .pth or .bin file, or a model's folder"
            )
        return [base]
    if (base / _INDEX).is_file():
        names = _shards(base / _INDEX)
        if missing := [name for name in names if not (base / name).is_file()]:
            raise FileNotFoundError(
                f"{base}: {_INDEX} names {missing[0]}, which is not there ({len(missing)} missing)"
            )
        return [base / name for name in names]
    for name in _SINGLE:
        if (base / name).is_file():
            return [base / name]
    if base.is_dir() and len(alone := sorted(base.glob("*.safetensors"))) == 1:
        return alone  # what `apply` writes for a single file
    there = sorted(path.name for path in base.iterdir())[:8] if base.is_dir() else "no such folder"
    raise FileNotFoundError(f"{base}: looked for {', '.join(_SINGLE)} or {_INDEX}, found {there}")


def _shards(index: Path) -> list[str]:
    """The names of the files that an index of shards lists, in its folder."""
    listed = read_json(index, dict, "the index of a model's shards").get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else {None}
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index}: no file names in weight_map, want the index of a model's shards")
    return sorted(map(str, names))


def read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one weight file.

    Pickled files are read with `weights_only=True`. An outer dict "state_dict" and what wrappers of a model
    add to names (`muwa.weight_files.reading.plain_names`) are removed.

    Raises:
        ValueError: The file is not a checkpoint; says what it is instead.
    """
    tree = read_tree(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not a checkpoint: it holds a {type(tree).__name__}, want tensors by name")
    if path.suffix == ".safetensors":
        return tree
    tree = tree.get("state_dict", tree)
    return plain_names({name: tensor for name, tensor in tree.items() if isinstance(tensor, Tensor)})


def read_weights(base: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint file or folder, in their stored dtype."""
    return {name: tensor for path in find_checkpoint(base) for name, tensor in read_file(path).items()}


def read_tensors(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of one weight file; the others are not read if it is a safetensors file."""
    if path.suffix != ".safetensors":
        tensors = read_file(path)
        return {name: tensors[name] for name in names}
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in names}


def tensor_names(path: Path) -> list[str]:
    """The names of all tensors in one weight file.

    Raises:
        ValueError: The file is not a checkpoint.
    """
    if path.suffix != ".safetensors":
        return list(read_file(path))
    check_file(path)
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def rewrite(base: Path, out: Path, changed: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint file or folder to the folder `out` with some tensors replaced.

    Each tensor is cast to its dtype in the base, and every other byte of a safetensors file stays the same.
    Other files are copied. A pickled checkpoint becomes safetensors. `out` appears complete or not at all.

    Args:
        changed: Name -> the tensor that replaces it.

    Raises:
        FileExistsError: `out` exists and is not empty.
        KeyError: A changed tensor is not in the base.
    """
    rewrite_files(base, out, in_files(base, changed))


def in_files(base: Path, changed: Mapping[str, Tensor]) -> dict[Path, dict[str, Tensor]]:
    """The changed tensors of a checkpoint by the weight file that holds them; all its files are keys.

    Raises:
        KeyError: A changed tensor is not in the base.
    """
    files = find_checkpoint(base)
    path_of = {name: path for path in files for name in tensor_names(path)}
    if missing := sorted(set(changed) - set(path_of)):
        raise KeyError(
            f"{base}: has no tensor {missing[0]} ({len(missing)} of the patch's tensors are missing)"
        )
    changes: dict[Path, dict[str, Tensor]] = {path: {} for path in files}
    for name, tensor in changed.items():
        changes[path_of[name]][name] = tensor
    return changes


def rewrite_files(
    base: Path,
    out: Path,
    changes: Mapping[Path, Mapping[str, Tensor]],
    dropped: Collection[Path] = (),
    added: Mapping[str, str] = MappingProxyType({}),
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """As `rewrite`, for any weight files of a folder, at any depth.

    Args:
        changes: Weight file of `base` -> its changed tensors by name.
        dropped: Files and folders of `base` to leave out of `out`.
        added: File name -> text of files to write into `out` too.
        finish: Called last with the folder, before it takes the name `out`.

    Raises:
        FileExistsError: `out` exists and is not empty.
        ValueError: `out` lies in `base`, or `base` holds a pipe, a device or a link to nothing.
    """
    check_out(base, out)
    draft = draft_of(out)
    left_out = {*dropped, *changes}  # the changed files are written one by one below
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if base.is_dir():
            shutil.copytree(
                base, draft, ignore=lambda at, files: {f for f in files if Path(at) / f in left_out}
            )
        else:
            draft.mkdir()
        for path, tensors in changes.items():
            relative = path.relative_to(base) if base.is_dir() else Path(path.name)
            _write_changed(path, (draft / relative).with_name(safetensors_name(path)), tensors)
        for name, text in added.items():
            (draft / name).write_text(text, encoding="utf-8")
        finish(draft)
        if out.is_dir():
            out.rmdir()
        os.replace(draft, out)
    except (OSError, SafetensorError) as error:
        raise_with_path(error, out)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # there is one only if something failed


def check_out(base: Path, out: Path) -> None:
    """Raise if a copy of `base` cannot be written to the new folder `out`; see `rewrite_files`."""
    if not base.exists():
        raise FileNotFoundError(f"{base}: no such file or folder, want a model")
    if is_patch(base):
        raise ValueError(f"{base}: a patch, want a model: a checkpoint, or the folder of a model")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: exists already; --out wants a new or empty folder")
    if base.is_dir() and out.resolve().is_relative_to(base.resolve()):
        raise ValueError(f"{out}: lies in {base}, which is copied; --out wants a folder elsewhere")
    for path in base.rglob("*") if base.is_dir() else ():
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{path}: not a regular file, so the folder cannot be copied; remove it")


def _write_changed(path: Path, to: Path, changed: Mapping[str, Tensor]) -> None:
    """Write the weight file `path` to the safetensors file `to`, with some tensors replaced."""
    if path.suffix == ".safetensors":
        shutil.copyfile(path, to)
        _overwrite(to, changed)
        return
    tensors = read_file(path)
    tensors |= {name: tensor.to(tensors[name].dtype) for name, tensor in changed.items()}
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, to, metadata={"format": "pt"})
    to.chmod(file_mode())


def safetensors_name(path: Path) -> str:
    """The name under which a folder's loader finds a weight file that became safetensors."""
    return re.sub(r"^(open_clip_)?pytorch_model", r"\1model", path.with_suffix(".safetensors").name)


def _overwrite(path: Path, changed: Mapping[str, Tensor]) -> None:
    """Replace tensors in a safetensors file by writing only their bytes.

    A safetensors file has three parts: the length of a JSON header; the header, which says where each tensor
    starts and ends; and the tensors as raw little-endian bytes.

    Raises:
        ValueError: A tensor's size differs from its size in the file.
    """
    with safe_open(path, "pt") as file:
        raw = {name: tensor.to(file.get_tensor(name).dtype) for name, tensor in changed.items()}
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, tensor in raw.items():
            start, end = header[name]["data_offsets"]
            content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            if len(content) != end - start:
                raise ValueError(
                    f"{name}: got {len(content)} bytes, want {end - start} as in the base: another shape"
                )
            file.seek(8 + size + start)
            file.write(content)

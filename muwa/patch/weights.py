"""Checkpoints as files, with no model built: fingerprints, reading, and rewriting a few tensors of a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.fingerprint import digest

_BUFFERS = ("attn_mask", "position_ids", "num_batches_tracked", "running_mean", "running_var")
_PICKLED = (".pt", ".pth", ".bin")
_SINGLE = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
HALVES = (torch.float16, torch.bfloat16)
_INDEX = "model.safetensors.index.json"


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of shape and fp32 bytes: an fp16 tensor and its fp32 cast have the same digest."""
    found = hashlib.sha256(str(tuple(tensor.shape)).encode())
    found.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()


def fingerprint_of_digests(digests: Mapping[str, str]) -> str:
    """SHA-256 of named tensor digests, by sorted name."""
    return digest([part for name in sorted(digests) for part in (name, digests[name])])


def counts(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a weight (masks, position numbers and integers are not)."""
    return tensor.is_floating_point() and not name.endswith(_BUFFERS)


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a set of weights, the same in every dtype that holds them exactly. What a patch is bound to."""
    return fingerprint_of_digests({n: tensor_digest(t) for n, t in weights.items() if counts(n, t)})


def find_checkpoint(base: Path) -> list[Path]:
    """The weight files of `base`: a file itself, or those of an open_clip or Hugging Face folder (sharded or not).

    Raises:
        FileNotFoundError: Says what was looked for and what is there.
    """
    if base.is_file():
        if base.suffix != ".safetensors" and base.suffix not in _PICKLED:
            raise FileNotFoundError(f"{base}: want a .safetensors, .pt, .pth or .bin file, or a model's folder")
        return [base]
    if (base / _INDEX).is_file():
        names = sorted(set(json.loads((base / _INDEX).read_text())["weight_map"].values()))
        if missing := [name for name in names if not (base / name).is_file()]:
            raise FileNotFoundError(f"{base}: {_INDEX} names {missing[0]}, which is not there ({len(missing)} missing)")
        return [base / name for name in names]
    for name in _SINGLE:
        if (base / name).is_file():
            return [base / name]
    there = sorted(path.name for path in base.iterdir())[:8] if base.is_dir() else "no such folder"
    raise FileNotFoundError(f"{base}: looked for {', '.join(_SINGLE)} or {_INDEX}, found {there}")


def read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one weight file; a pickle is read with `weights_only=True`, "state_dict" and "module." taken off."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, LookupError) as error:
        raise ValueError(f"{path}: not a checkpoint ({str(error).splitlines()[0][:160]})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not a checkpoint: it holds a {type(tree).__name__}, want tensors by name")
    tree = tree.get("state_dict", tree)
    return {name.removeprefix("module."): tensor for name, tensor in tree.items() if isinstance(tensor, Tensor)}


def read_weights(base: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint file or folder, in the dtype they are stored in."""
    return {name: tensor for path in find_checkpoint(base) for name, tensor in read_file(path).items()}


def rewrite(base: Path, out: Path, changed: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint file or folder to the folder `out` with some tensors replaced.

    Each tensor keeps the dtype of the base and every other byte of a safetensors file stays; other files are copied as
    they are; a pickled checkpoint becomes safetensors. `out` appears whole or not at all.

    Raises:
        FileExistsError: `out` is there and not empty.
        KeyError: A changed tensor is not in the base.
    """
    files = find_checkpoint(base)
    homes = {name: path for path in files for name in tensor_names(path)}
    if missing := sorted(set(changed) - set(homes)):
        raise KeyError(f"{base}: has no tensor {missing[0]} ({len(missing)} of the patch's are missing)")
    changes: dict[Path, dict[str, Tensor]] = {path: {} for path in files}
    for name, tensor in changed.items():
        changes[homes[name]][name] = tensor
    rewrite_files(base, out, changes)


def rewrite_files(
    base: Path, out: Path, changes: Mapping[Path, Mapping[str, Tensor]], dropped: Collection[Path] = ()
) -> None:
    """`rewrite` for any weight files of a folder, at any depth: which tensors of each file are replaced.

    Args:
        dropped: Files of `base` that are not to be in `out`.

    Raises:
        FileExistsError: `out` is there and not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: is there already; --out wants a new or empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f"{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    left = {*dropped, *changes}  # copied one by one below
    try:
        if base.is_dir():
            shutil.copytree(base, draft, ignore=lambda folder, names: {n for n in names if Path(folder) / n in left})
        else:
            draft.mkdir()
        for path, own in changes.items():
            to = (draft / path.relative_to(base) if base.is_dir() else draft / path.name).with_name(_safe_name(path))
            if path.suffix == ".safetensors":
                shutil.copyfile(path, to)
                _overwrite(to, own)
            else:
                tensors = read_file(path)
                tensors |= {name: tensor.to(tensors[name].dtype) for name, tensor in own.items()}
                save_file({n: t.contiguous().clone() for n, t in tensors.items()}, to, metadata={"format": "pt"})
        if out.is_dir():
            out.rmdir()
        os.replace(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # gone already where all went well


def _safe_name(path: Path) -> str:
    """What a weight file is called as safetensors, where its folder's loader looks for it."""
    return re.sub(r"^(open_clip_)?pytorch_model", r"\1model", path.with_suffix(".safetensors").name)


def read_some(path: Path, wanted: Collection[str]) -> dict[str, Tensor]:
    """Some tensors of one weight file, without reading the others where the format allows it."""
    if path.suffix != ".safetensors":
        tensors = read_file(path)
        return {name: tensors[name] for name in wanted}
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in wanted}


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors of one weight file."""
    if path.suffix != ".safetensors":
        return list(read_file(path))
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error


def _overwrite(path: Path, changed: Mapping[str, Tensor]) -> None:
    """Replace tensors inside a safetensors file: only their own bytes are written (the format puts raw little-endian
    tensors behind a JSON header that says where each one lies)."""
    with safe_open(path, "pt") as file:
        raw = {name: tensor.to(file.get_tensor(name).dtype) for name, tensor in changed.items()}
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name, tensor in raw.items():
            start, end = header[name]["data_offsets"]
            content = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            if len(content) != end - start:
                raise ValueError(f"{name}: got {len(content)} bytes, want {end - start} as in the base: another shape")
            file.seek(8 + size + start)
            file.write(content)


def same_bits(stored: Tensor, wanted: Tensor) -> bool:
    """Whether a stored tensor is `wanted`, perhaps once rounded to half precision."""
    if stored.shape != wanted.shape:
        return False
    stored, wanted = stored.cpu(), wanted.cpu()
    return any(torch.equal(stored, wanted.to(dtype).to(stored.dtype)) for dtype in (stored.dtype, *HALVES))

"""Load a diffusers text-to-image pipeline: the miniature's, a folder, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants, hf_hub_download
from safetensors import SafetensorError

from muwa.models.clip.model import Clip, check_device
from muwa.models.clip.open_clip import quiet
from muwa.models.diffusion.model import COMPONENTS, ENCODERS, Diffusion, Sampling
from muwa.models.precision import dtype_named

MINIATURE = Path(__file__).parents[2] / "miniature" / "sd"

WANTED = "a pipeline with a unet and CLIP text encoders, as Stable Diffusion 1, 2 and XL have"
CLIP_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")  # classes of a text encoder that can be edited

# What `from_pretrained` raises, depending on which part of a folder is damaged. The hub's own errors are
# OSErrors.
LOADING_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    OSError,
    SafetensorError,
)


def load(
    path: str,
    *,
    clips: Mapping[str, Callable[[], Clip]],
    steps: int,
    guidance: float,
    size: int | None,
    dtype: str,
    device: str,
) -> Diffusion:
    """Load a pipeline and the CLIPs of its text encoders, in eval mode.

    Args:
        path: "miniature", a folder that `save_pretrained` of a diffusers pipeline wrote, or a hub id.
        clips: Text encoder ("text_encoder", "text_encoder_2") -> loads the CLIP whose text tower it is.
        steps, guidance, size: Settings of `Sampling`.
        dtype: Type of the pipeline's weights: "fp32", "fp16" or "bf16". The CLIPs, gradients and deltas stay
            fp32.
        device: "cpu", "cuda", ...

    Raises:
        ValueError: A setting is out of range; the folder is no text-to-image pipeline with CLIP text
            encoders; a CLIP is not its encoder's.
        FileNotFoundError: The weights are not there; says what was looked for and how to get them.

    No pickle is unpacked: weights are safetensors, or read with `weights_only`. A safety checker is left out.
    """
    check_device(device)
    torch_dtype = dtype_named(dtype)
    if steps < 1 or guidance < 1 or (size is not None and size % 8):
        raise ValueError(
            f"model.steps={steps} guidance={guidance} size={size}: want steps >= 1, guidance >= 1 (1 is "
            "none), and a size that is a multiple of 8"
        )
    check_kind(path, _index_of(path))
    pipeline = _read_pipeline(path, torch_dtype)
    encoders = _check_parts(pipeline, path)
    if sorted(clips) != encoders:
        raise ValueError(
            f"model.clips: got {', '.join(clips) or 'none'}, want one for each of {', '.join(encoders)} of "
            f"{path}"
        )
    pipeline.to(device)
    source = "the miniature" if path == "miniature" else f"diffusers {path}"
    loaded = {name: clips[name]() for name in encoders}
    return Diffusion(pipeline, loaded, Sampling(steps, guidance, size), source=source)


def _read_pipeline(path: str, dtype: torch.dtype) -> Any:
    """The pipeline of a folder or hub id.

    Raises:
        ValueError: The folder cannot be loaded.
        FileNotFoundError: Neither a folder nor a hub id that can be had.
    """
    folder = MINIATURE if path == "miniature" else Path(path)
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    if folder.is_dir():
        options = options if "safety_checker" in check_folder(folder) else {}
        full = any(folder.glob("unet/diffusion_pytorch_model.[bs]*"))
        if not full and any(folder.glob("unet/*.fp16.safetensors")):
            options["variant"] = "fp16"
    try:
        with quiet():
            where = str(folder) if path == "miniature" else path
            return DiffusionPipeline.from_pretrained(where, dtype=dtype, **options)
    except LOADING_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if folder.is_dir():
            raise ValueError(f"model.path={path}: cannot be loaded ({reason})") from error
        raise FileNotFoundError(
            f"model.path={path}: no such folder, and no hub id that is in {constants.HF_HUB_CACHE} or could "
            f"be fetched ({reason}). On a machine with a network: `hf download {path}`, or give a folder "
            "with model_index.json, as save_pretrained of a diffusers pipeline writes it."
        ) from error


def _index_of(path: str) -> Any:
    """What `model_index.json` of a folder or hub id holds; None if it cannot be read: `load` says why."""
    try:
        file = Path(path) / "model_index.json"
        if path == "miniature":
            file = MINIATURE / file.name
        elif not Path(path).exists():
            file = Path(hf_hub_download(path, file.name))
        return json.loads(file.read_text())
    except (
        OSError,
        ValueError,
    ):  # the hub's errors are OSErrors, and ValueErrors for a name that is no hub id
        return None


def check_kind(path: str, index: Any) -> None:
    """Raise if a pipeline is not of a kind that can be edited. No weights are read.

    Args:
        index: What `model_index.json` holds: component -> [library, class], [None, None] if it is absent.
            Anything but a mapping is passed.

    Raises:
        ValueError: It has no UNet, or a text encoder that is not a CLIP's. Says what reads the prompt.
    """
    if not isinstance(index, Mapping):
        return
    parts = {name: kind[1] for name, kind in index.items() if isinstance(kind, list | tuple) and kind[-1]}
    readers = {name: kind for name, kind in parts.items() if "text_encoder" in name}
    others = [name for name, kind in readers.items() if name not in ENCODERS or kind not in CLIP_TEXT]
    if readers and not others and "unet" in parts:
        return
    reads = ", ".join(f"{name} ({kind})" for name, kind in readers.items()) or "no text encoder of its own"
    clips = [name for name in readers if name not in others]
    if clips and others:
        reason = (
            f"An edit of {' and '.join(clips)} alone would leave the name in {', '.join(others)}, which "
            "shapes the image too"
        )
    elif clips:
        makers = [f"{name} ({parts[name]})" for name in ("transformer", "prior", "decoder") if name in parts]
        reason = f"Its images are made by {', '.join(makers) or 'another part'}, not by a unet"
    else:
        reason = "So there is no CLIP to take a gradient on"
    raise ValueError(
        f"model.path={path}: a {index.get('_class_name')}; want {WANTED}. Its prompt is read by {reads}. "
        f"{reason}. Components: {', '.join(parts)}"
    )


def _check_parts(pipeline: Any, path: str) -> list[str]:
    """The text encoders of a pipeline.

    Raises:
        ValueError: It has no UNet or no text encoder, or a component lacks weights.
    """
    there = [name for name in COMPONENTS if getattr(pipeline, name, None) is not None]
    modules = {name: getattr(pipeline, name) for name in there}
    encoders = [name for name in ENCODERS if name in modules]
    if "unet" not in modules or not encoders:
        raise ValueError(
            f"model.path={path}: a {type(pipeline).__name__}; want {WANTED}. Components: "
            f"{', '.join(pipeline.components)}"
        )
    empty = [
        f"{name}/{key}"
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.is_meta
    ]
    if empty:
        raise ValueError(f"model.path={path}: no weights for {', '.join(empty[:4])} ({len(empty)} missing)")
    return encoders


def check_folder(folder: Path) -> set[str]:
    """Raise if a folder is no pipeline, or lacks a part that its index names.

    Returns:
        What the index names, with or without a folder of that name ("unet", "safety_checker", ...).

    Raises:
        FileNotFoundError: Says what was looked for and what is there.
        ValueError: The index cannot be read.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        there = sorted(path.name for path in folder.iterdir())[:8]
        raise FileNotFoundError(f"{folder}: no model_index.json, so no diffusers pipeline; found {there}")
    try:
        named = json.loads(index.read_text())
    except ValueError as error:
        raise ValueError(f"{index}: not JSON ({error})") from error
    if not isinstance(named, dict):
        raise ValueError(f"{index}: got a {type(named).__name__}, want an object that names the parts")
    parts = {name for name, kind in named.items() if isinstance(kind, list) and kind[0]}
    needed = parts & {*COMPONENTS, "tokenizer", "tokenizer_2", "scheduler"}
    missing = [name for name in sorted(needed) if not any((folder / name).glob("*"))]
    if missing:
        raise FileNotFoundError(f"{folder}: model_index.json names {', '.join(missing)}, which is not there")
    return set(named)

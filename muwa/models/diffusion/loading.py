"""Load a diffusers text-to-image pipeline: the miniature's, a folder, a single file, or a hub id."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import constants
from safetensors import SafetensorError

from muwa.models.clip.model import Clip, check_device
from muwa.models.clip.open_clip import quiet
from muwa.models.diffusion.model import COMPONENTS, ENCODERS, Diffusion, Sampling
from muwa.models.diffusion.single_file import read_single_file
from muwa.models.precision import dtype_named

MINIATURE = Path(__file__).parents[2] / "miniature" / "sd"

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
    config: str | None,
    clips: Mapping[str, Callable[[], Clip]],
    steps: int,
    guidance: float,
    size: int | None,
    dtype: str,
    device: str,
) -> Diffusion:
    """Load a pipeline and the CLIPs of its text encoders, in eval mode.

    Args:
        path: "miniature", a folder that `save_pretrained` of a diffusers pipeline wrote, a single
            .safetensors file of Stable Diffusion 1, 2 or XL (docs/diffusion.md), or a hub id.
        config: For a single file: a folder with the pipeline's configs and tokenizers. None derives them.
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
    if config and not Path(path).is_file():
        raise ValueError(f"model.config={config}: is for a single file; model.path={path} is none")
    pipeline = _read_pipeline(path, config, torch_dtype)
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


def _read_pipeline(path: str, config: str | None, dtype: torch.dtype) -> Any:
    """The pipeline of a folder, a single file or a hub id.

    Raises:
        ValueError: The folder or file cannot be loaded.
        FileNotFoundError: Neither a folder nor a hub id that can be had.
    """
    folder = MINIATURE if path == "miniature" else Path(path)
    if folder.is_file():
        with quiet():
            return read_single_file(folder, config, dtype)
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
            f"model.path={path}: a {type(pipeline).__name__}; want a pipeline with a unet and CLIP text "
            f"encoders, as Stable Diffusion 1, 2 and XL have. Components: {', '.join(pipeline.components)}"
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

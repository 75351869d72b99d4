"""Load a vision-language model of transformers: a folder or a hub id."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
)
from transformers import __version__ as transformers_version

from muwa.models.clip.model import Clip
from muwa.models.library_output import quietly
from muwa.models.precision import dtype_named
from muwa.models.pretrained import check_code, check_complete, read_model, tried, weight_options
from muwa.models.vlm.model import Vlm
from muwa.runtime.devices import check_device

MINIATURE = Path(__file__).parents[2] / "miniature" / "llava"
TOWERS = ("clip_vision_model", "siglip_vision_model")

WANTED = "config.json, model.safetensors and the processor's files"  # in a folder


def load(path: str, *, clip: Callable[[], Clip], max_new_tokens: int, dtype: str, device: str) -> Vlm:
    """Load a model, its processor, and the CLIP that its vision tower was taken from, in eval mode.

    Args:
        path: "miniature" (the shipped model), a folder that `save_pretrained` of model and processor wrote,
            or a hub id.
        clip: Loads the CLIP whose vision tower it is.
        max_new_tokens: The longest answer. SLUG's code takes 16.
        dtype: Type of the model's weights: "fp32", "fp16" or "bf16". The CLIP, gradients and deltas stay
            fp32.
        device: "cpu", "cuda", ...

    Raises:
        ValueError: A setting is out of range; the vision tower is not a CLIP's; the CLIP is not the tower's.
        FileNotFoundError: The weights are not there; says what was looked for and how to get them.
    """
    check_device(device)
    torch_dtype = dtype_named(dtype)
    if max_new_tokens < 1:
        raise ValueError(f"model.max_new_tokens: got {max_new_tokens}, want at least 1")
    model, processor = _read_model(str(MINIATURE) if path == "miniature" else path, torch_dtype)
    _complete(processor, model.config)
    model.to(device)
    return Vlm(model, processor, clip(), max_new_tokens=max_new_tokens, source=f"transformers {path}")


def _read_model(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(The model, its processor) of a folder or hub id.

    Raises:
        ValueError: The folder cannot be loaded or lacks weights, or the vision tower is not a CLIP's.
        FileNotFoundError: Neither a whole folder nor a hub id that can be had.
    """
    with quietly():
        config = tried(path, WANTED, lambda: PretrainedConfig.get_config_dict(path)[0])
        _check_format(path, config)
        check_code(path, config, CONFIG_MAPPING)
        typed = tried(path, WANTED, lambda: AutoConfig.from_pretrained(path, trust_remote_code=False))
        _check_tower(path, typed)
        if Path(path).is_dir():
            check_folder(Path(path))
        options = {"dtype": dtype, **weight_options(path)}
        model, info = tried(path, WANTED, lambda: read_model(AutoModelForImageTextToText, path, **options))
        check_complete(path, info)
        processor = tried(path, WANTED, lambda: AutoProcessor.from_pretrained(path, trust_remote_code=False))
    return model, processor


def _check_format(path: str, config: Mapping[str, Any]) -> None:
    """Raise if a model is in the format of LLaVA's own code, or of a type that transformers does not know.

    Raises:
        ValueError: Says what it is, what is wanted, and how to convert it.
    """
    kind = config.get("model_type")
    if "mm_vision_tower" in config or (str(kind).startswith("llava_") and kind not in CONFIG_MAPPING):
        raise ValueError(
            f"model.path={path}: a LLaVA in its original format (model_type {kind}), want the converted one, "
            "as transformers' save_pretrained writes it. Take model=llava15_7b or llava15_13b, whose hub ids "
            'are converted, or convert yours: docs/vlm.md, "LLaVA\'s original format"'
        )
    if kind not in CONFIG_MAPPING and not config.get("auto_map"):
        raise ValueError(
            f"model.path={path}: transformers {transformers_version} has no model of type {kind!r}; want a "
            "type that it has, or a version of transformers that has this one"
        )


def _complete(processor: Any, config: Any) -> None:
    """Give a processor the settings with which it counts an image's tokens; older files lack them.

    They are the model's own values.
    """
    vision = config.vision_config
    if not hasattr(processor, "num_additional_image_tokens"):
        return
    processor.patch_size = processor.patch_size or vision.patch_size
    processor.vision_feature_select_strategy = (
        processor.vision_feature_select_strategy or config.vision_feature_select_strategy
    )
    processor.num_additional_image_tokens = int(vision.model_type == "clip_vision_model")  # its class token


def _check_tower(path: str, config: Any) -> None:
    """Raise if the vision tower of a model is not a CLIP's.

    Raises:
        ValueError: Says what its tower is, and what is wanted.
    """
    vision = getattr(config, "vision_config", None)
    kind = getattr(vision, "model_type", None)
    if kind not in TOWERS:
        raise ValueError(
            f"model.path={path}: a {config.model_type} with a vision tower of kind {kind or 'none'}; want "
            f"one of {', '.join(TOWERS)}, as LLaVA-1.5 has. A tower that was trained with its language model "
            "has no text tower of its own, so there is no CLIP to take a forget gradient on"
        )


def check_folder(folder: Path) -> None:
    """Raise if a folder lacks a part of a model or of its processor.

    Raises:
        FileNotFoundError: Says what was looked for and what is there.
    """
    there = {path.name for path in folder.iterdir()}
    parts = {
        "config.json": {"config.json"},
        "processor_config.json": {"processor_config.json", "preprocessor_config.json"},
        "tokenizer.json": {"tokenizer.json", "tokenizer.model", "vocab.json"},
    }
    if missing := [name for name, files in parts.items() if not there & files]:
        raise FileNotFoundError(
            f"model.path={folder}: looked for {', '.join(parts)} and model.safetensors as save_pretrained of "
            f"model and processor writes them; {', '.join(missing)} missing, found {sorted(there)[:8]}"
        )

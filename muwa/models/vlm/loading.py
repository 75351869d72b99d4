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
from muwa.models.hub_access import cache_if_out_of_reach
from muwa.models.library_output import quietly
from muwa.models.precision import dtype_named
from muwa.models.pretrained import check_code, check_complete, read_model, tried, weight_options
from muwa.models.shipped import set_aside
from muwa.models.vlm.model import TOWER, Vlm
from muwa.patch import names
from muwa.patch.ledger import local_place, requests_on
from muwa.runtime.devices import check_device
from muwa.types.ranges import Count, Device, Dtype, Source

MINIATURE = Path(__file__).parents[2] / "miniature" / "llava"
# The `model_type` of architectures that were tested whole -> what they are called.
ARCHITECTURES = {
    "llava": "LLaVA-1.5",
    "llava_next": "LLaVA-NeXT",
    "vipllava": "ViP-LLaVA",
    "llava_onevision": "LLaVA-OneVision",
}
TOWERS = ("clip_vision_model", "siglip_vision_model")
# |tower - CLIP| / |CLIP| above which a tower was not trained on from this CLIP. Unrelated towers of one norm
# are about 1.4 apart.
FAR = 0.5

WANTED = "config.json, model.safetensors and the processor's files"  # in a folder


def load(
    path: Source,
    *,
    clip: Callable[[], Clip],
    tuned_tower: bool,
    max_new_tokens: Count,
    dtype: Dtype,
    device: Device,
) -> Vlm:
    """Load a model, its processor, and the CLIP that its vision tower was taken from, in eval mode.

    Args:
        path: "miniature" (the shipped model), a folder that `save_pretrained` of model and processor wrote,
            or a hub id.
        clip: Loads the CLIP whose vision tower it is.
        tuned_tower: Whether the tower was trained on after it was taken from that CLIP, as LLaVA-NeXT's were.
            Then gradients are taken on a CLIP with the model's own vision tower and the given text tower.
        max_new_tokens: The longest answer. SLUG's code takes 16.
        dtype: Type of the model's weights: "fp32", "fp16" or "bf16". The CLIP, gradients and deltas stay
            fp32.
        device: "cpu", "cuda", ...

    Raises:
        ValueError: A setting is out of range; the architecture is none of `ARCHITECTURES`; the vision tower
            is not a CLIP's; the CLIP is not the tower's.
        FileNotFoundError: The weights are not there; says what was looked for and how to get them.
    """
    check_device(device)
    torch_dtype = dtype_named(dtype)
    if max_new_tokens < 1:
        raise ValueError(f"model.max_new_tokens: got {max_new_tokens}, want at least 1")
    model, processor = _read_model(str(MINIATURE) if path == "miniature" else path, torch_dtype)
    _complete(processor, model.config)
    model.to(device)
    source, its_clip = f"transformers {path}", clip()
    requests = () if path == "miniature" else requests_on(path)
    shipped = {}
    if tuned_tower:
        its_clip = _with_own_tower(its_clip, model, source)
    elif requests:
        tower = {name: p for name, p in model.named_parameters() if f"{TOWER}." in name}
        shipped = set_aside(tower, its_clip, requests, names.ENCODERS[0])
    place = MINIATURE if path == "miniature" else local_place(path)
    about: dict[str, Any] = {"source": source, "requests": requests, "place": place}
    vlm = Vlm(model, processor, its_clip, max_new_tokens=max_new_tokens, **about)
    return vlm.shipped(shipped) if shipped else vlm


def _with_own_tower(clip: Clip, model: Any, source: str) -> Clip:
    """`clip` with the vision tower of `model`, which was trained on from that of `clip`.

    Raises:
        ValueError: A shape differs, or the two towers are `FAR` from each other.
    """
    tower = {name: p.detach() for name, p in model.named_parameters() if f"{TOWER}." in name}
    renamed = names.tower_under_names_of(clip.weights, tower)
    own = {name: tensor.to(clip.weights[name]) for name, tensor in renamed.items()}
    other = clip.with_weights(own)
    moved = sum((tensor - clip.weights[name]).square().sum().item() for name, tensor in own.items())
    size = sum(clip.weights[name].square().sum().item() for name in own)
    distance = (moved / size) ** 0.5 if size else 0.0
    if distance > FAR:
        raise ValueError(
            f"model.tuned_tower: the vision tower of {source} differs from that of {clip.source} by "
            f"{distance:.2f} of its norm, want at most {FAR}: it was not trained on from that CLIP. Give the "
            "CLIP that it was taken from"
        )
    return other


def _read_model(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(The model, its processor) of a folder or hub id.

    Raises:
        ValueError: The folder cannot be loaded or lacks weights, or the vision tower is not a CLIP's.
        FileNotFoundError: Neither a whole folder nor a hub id that can be had.
    """
    with cache_if_out_of_reach(not Path(path).is_dir()), quietly():
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
    if kind is None and Path(path).is_dir():
        raise ValueError(
            f"model.path={path}: no config.json with a model_type, so no vision-language model of "
            f"transformers; found {sorted(one.name for one in Path(path).iterdir())[:8]}. A folder with a "
            "model_index.json is a pipeline: model=sd"
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
    """Raise if a model is none of `ARCHITECTURES`, or its vision tower is not a CLIP's.

    Raises:
        ValueError: Says what it is, what its tower is, and what is wanted.
    """
    vision = getattr(config, "vision_config", None)
    kind = getattr(vision, "model_type", None)
    named = f"model.path={path}: a {config.model_type} with a vision tower of kind {kind or 'none'}"
    known = ", ".join(f"{name} ({key})" for key, name in ARCHITECTURES.items())
    wanted = f"want {known}, with one of {', '.join(TOWERS)}"
    if kind not in TOWERS:
        raise ValueError(
            f"{named}; {wanted}. A tower that was trained with its language model has no text tower of its "
            "own, so there is no CLIP to take a forget gradient on"
        )
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"{named}; {wanted}. Whether another architecture answers rightly was not tested")


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

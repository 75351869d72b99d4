"""Load a diffusers text-to-image pipeline: the miniature's, a folder, a single file, or a hub id."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel, DiffusionPipeline
from huggingface_hub import hf_hub_download

from muwa.json_files import read_json
from muwa.models.clip.model import Clip
from muwa.models.diffusion.model import COMPONENTS, ENCODERS, Diffusion, Sampling
from muwa.models.diffusion.single_file import read_single_file
from muwa.models.hub_access import cache_if_out_of_reach
from muwa.models.library_output import quietly
from muwa.models.precision import dtype_named
from muwa.models.pretrained import tried
from muwa.models.shipped import set_aside
from muwa.patch.files import tensor_names
from muwa.patch.ledger import local_place, requests_on
from muwa.runtime.devices import check_device
from muwa.runtime.notices import notice
from muwa.types.ranges import Count, Device, Dtype, LatentPixels, Scale, Source, Text
from muwa.weight_files.components import weights_of
from muwa.weight_files.reading import differences

MINIATURE = Path(__file__).parents[2] / "miniature" / "sd"

WANTED = "model_index.json, unet/, vae/, text_encoder/, tokenizer/ and scheduler/"  # in a folder
KIND = "a pipeline with a unet and CLIP text encoders, as Stable Diffusion 1, 2 and XL have"
CLIP_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")  # classes of a text encoder that can be edited


def load(
    path: Source,
    *,
    config: Text | None,
    clips: Mapping[str, Callable[[], Clip]],
    steps: Count,
    guidance: Scale,
    size: LatentPixels | None,
    dtype: Dtype,
    device: Device,
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
    check_kind(path, _index_of(path))
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
    requests = () if path == "miniature" else requests_on(path)
    shipped = {
        f"{name}/{key}": tensor
        for name in (encoders if requests else [])
        for key, tensor in set_aside(
            dict(getattr(pipeline, name).named_parameters()), loaded[name], requests, name
        ).items()
    }
    place = MINIATURE if path == "miniature" else local_place(path)
    sampling = Sampling(steps, guidance, size)
    model = Diffusion(pipeline, loaded, sampling, source=source, requests=requests, place=place)
    return model.shipped(shipped) if shipped else model


def _read_pipeline(path: str, config: str | None, dtype: torch.dtype) -> Any:
    """The pipeline of a folder, a single file or a hub id.

    Raises:
        ValueError: The folder or file cannot be loaded.
        FileNotFoundError: Neither a folder nor a hub id that can be had.
    """
    folder = MINIATURE if path == "miniature" else Path(path)
    if folder.is_file():
        with quietly():
            return read_single_file(folder, config, dtype)
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    with cache_if_out_of_reach(not folder.is_dir()), quietly():
        if folder.is_dir():
            options = options if "safety_checker" in check_folder(folder) else {}
            options |= _components(folder, path, dtype)
        where = str(folder) if path == "miniature" else path
        return tried(
            path,
            WANTED,
            lambda: DiffusionPipeline.from_pretrained(where, dtype=dtype, trust_remote_code=False, **options),
        )


def _components(folder: Path, path: str, dtype: torch.dtype) -> dict[str, Any]:
    """Component name -> the component, for those whose weights diffusers would not find by itself.

    These are components that are there only as a variant (fp16), or only as .bin files.

    Raises:
        FileNotFoundError, ValueError: A component has no whole weights, or a file is not what its name says.
    """
    named = read_json(folder / "model_index.json", dict, "the index of a pipeline")
    there = [name for name in COMPONENTS if (named.get(name) or [None])[0]]
    weights = {name: weights_of(folder / name, "model.path") for name in there}
    variants = {name: one.variant for name, one in weights.items() if one.variant is not None}
    if variants:
        given = ", ".join(f"{name} as {variant}" for name, variant in variants.items())
        notice(f"model.path={path}: weights that are there as a variant alone are read: {given}")
    made = {}
    for name, one in weights.items():
        if one.pickled and one.shards and one.files[0].name.startswith("diffusion_"):
            raise ValueError(
                f"model.path={path}: {name} is there in shards of .bin files, which diffusers cannot read; "
                "save it as safetensors: save_pretrained(FOLDER) of the component"
            )
        if one.variant is not None or one.pickled:
            settings = {"dtype": dtype, "variant": one.variant, "use_safetensors": not one.pickled}
            read = partial(
                AutoModel.from_pretrained, str(folder), subfolder=name, trust_remote_code=False, **settings
            )
            made[name] = tried(path, WANTED, read)
    return made


def _index_of(path: str) -> Any:
    """What `model_index.json` of a folder or hub id holds; None if it cannot be read: `load` says why."""
    try:
        file = Path(path) / "model_index.json"
        if path == "miniature":
            file = MINIATURE / file.name
        elif not Path(path).exists():
            with cache_if_out_of_reach(True), quietly():
                file = Path(hf_hub_download(path, file.name))
        return read_json(file, dict, "the index of a pipeline")
    except (OSError, ValueError):  # the hub's errors are OSErrors; ValueErrors for a name that is no hub id
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
        f"model.path={path}: a {index.get('_class_name')}; want {KIND}. Its prompt is read by {reads}. "
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
            f"model.path={path}: a {type(pipeline).__name__}; want {KIND}. Components: "
            f"{', '.join(pipeline.components)}"
        )
    for name, module in modules.items():
        if empty := [key for key, parameter in module.named_parameters() if parameter.is_meta]:
            unexpected = [key for key in _stored_names(path, name) if key not in module.state_dict()]
            raise ValueError(
                f"model.path={path}: {name}: no weights for this model in some places: "
                f"{differences(empty, unexpected, [])}"
            )
    return encoders


def _has_own_code(folder: Path, name: str, library: str) -> bool:
    """Whether an entry of model_index.json is a class of a Python file in the folder."""
    return name == "_class_name" or (folder / name / f"{library}.py").is_file()


def _stored_names(path: str, component: str) -> list[str]:
    """The names of the weights that a folder's files hold for a component; none for a hub id."""
    if not Path(path).is_dir():
        return []
    files = weights_of(Path(path) / component, "model.path").files
    return [name for file in files for name in tensor_names(file)]


def check_folder(folder: Path) -> set[str]:
    """Raise if a folder is no pipeline, or lacks a part that its index names.

    Returns:
        What the index names, with or without a folder of that name ("unet", "safety_checker", ...).

    Raises:
        FileNotFoundError: Says what was looked for and what is there.
        ValueError: The index cannot be read, or wants code of the folder to run.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        there = sorted(path.name for path in folder.iterdir())[:8]
        raise FileNotFoundError(f"{folder}: no model_index.json, so no diffusers pipeline; found {there}")
    named = read_json(index, dict, "an object that names the parts")
    parts = {name for name, kind in named.items() if isinstance(kind, list) and kind[0]}
    code = [name for name in sorted(parts) if _has_own_code(folder, name, named[name][0])]
    if code:
        raise ValueError(
            f"{index}: wants code of its own for {', '.join(code)}; muwa runs no code of a folder; want "
            "components and a pipeline that diffusers and transformers have"
        )
    needed = parts & {*COMPONENTS, "tokenizer", "tokenizer_2", "scheduler"}
    missing = [name for name in sorted(needed) if not any((folder / name).glob("*"))]
    if missing:
        raise FileNotFoundError(f"{folder}: model_index.json names {', '.join(missing)}, which is not there")
    return set(named)

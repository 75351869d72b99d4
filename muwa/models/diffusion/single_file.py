"""Load a pipeline from one file, as A1111 and ComfyUI keep it, without a network.

diffusers reads the weights (`from_single_file`). It would fetch configs and tokenizers from the hub; here
they come from a folder that is given, or are derived: the text encoders' sizes from the file's tensors, the
rest from the published configs of Stable Diffusion 1, 2, XL, and the tokenizer from open_clip's vocabulary.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextConfig, CLIPTokenizer

from muwa.json_files import read_json
from muwa.patch.files import CKPT
from muwa.patch.layouts import TEXT_PREFIXES, Section, sections

Shape = tuple[int, ...]
_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OSError,
    SafetensorError,
    SingleFileComponentError,
)
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
# Width of the text that the UNet reads -> its config, as published beside the weights.
_UNETS: dict[int, dict[str, Any]] = {
    768: {"sample_size": 64, "attention_head_dim": 8},
    1024: {"sample_size": 96, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    2048: {
        "sample_size": 128,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280],
        "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def read_single_file(path: Path, config: str | None, dtype: torch.dtype) -> Any:
    """The pipeline in one safetensors file.

    Args:
        config: A folder with the configs and tokenizers of the pipeline, as `save_pretrained` writes it; its
            weights are not read. None derives them from the file.

    Raises:
        ValueError: The file is pickled or has no layout that is known; its configs cannot be derived; or its
            weights do not fit them.
        FileNotFoundError: The folder of configs has no model_index.json.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"model.path={CKPT.format(path=path)}")
    shapes, metadata = _header(path)
    found = sections(shapes)
    if "unet" not in {section.component for section in found}:
        raise ValueError(
            f"model.path={path}: no single file of Stable Diffusion: looked for model.diffusion_model., "
            f"{', '.join(TEXT_PREFIXES)}; its first tensors are {', '.join(list(shapes)[:3])}"
        )
    with nullcontext(config) if config else tempfile.TemporaryDirectory() as folder:
        if not config:
            write_configs(Path(folder), shapes, found, metadata, str(path))
        index = Path(folder, "model_index.json")
        if not index.is_file():
            raise FileNotFoundError(f"model.config={config}: no model_index.json, so no folder of configs")
        kind = _pipeline_class(index)
        options = {"safety_checker": None} if "safety_checker" in kind._optional_components else {}
        try:
            return kind.from_single_file(
                str(path), config=folder, local_files_only=True, dtype=dtype, **options
            )
        except _ERRORS as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise ValueError(
                f"model.path={path}: cannot be loaded ({reason}). Its weights may not fit the configs "
                f"{f'of {config}' if config else 'of Stable Diffusion 1, 2 or XL: give model.config=FOLDER'}"
            ) from error


def _pipeline_class(index: Path) -> Any:
    """The class of a pipeline that its index names."""
    name = read_json(index, dict, "the index of a pipeline").get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, diffusers.DiffusionPipeline):
        raise ValueError(f"{index}: _class_name is {name!r}, want a pipeline of diffusers")
    return kind


def _header(path: Path) -> tuple[dict[str, Shape], dict[str, str]]:
    """(Name -> shape, the metadata) of a safetensors file, without its tensors."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {n: tuple(file.get_slice(n).get_shape()) for n in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"model.path={path}: not a safetensors file ({error})") from error


def write_configs(
    folder: Path, shapes: Mapping[str, Shape], found: list[Section], metadata: Mapping[str, str], where: str
) -> None:
    """Write the configs and tokenizers of a single file's pipeline, as `save_pretrained` would.

    The scheduler of Stable Diffusion 2 predicts v, unless the file's metadata has the key
    "modelspec.prediction_type" with "epsilon" (the standard github.com/Stability-AI/ModelSpec).

    Args:
        shapes, metadata: Those of the file.
        found: The components in it.

    Raises:
        ValueError: It is none of Stable Diffusion 1, 2 and XL.
    """
    stored = {section.component: section.stored for section in found if not section.average}
    width = _unet_width(shapes, stored)
    encoders = [name for name in ("text_encoder", "text_encoder_2") if name in stored]
    wanted = ["text_encoder", "text_encoder_2"] if width == 2048 else ["text_encoder"]
    channels = shapes[stored["unet"]["conv_in.weight"]][1]
    comfy = any(name.startswith("text_encoders.") for name in shapes)
    if width not in _UNETS or encoders != wanted or channels != 4 or comfy:
        raise ValueError(
            f"model.path={where}: want Stable Diffusion 1, 2 or XL with its text encoders under the names of "
            f"the original code (docs/diffusion.md); found a UNet of {channels} channels that reads text of "
            f"width {width}, and {', '.join(encoders) or 'no text encoder'}"
            f"{' under the names of ComfyUI' if comfy else ''}. For another model give model.config=FOLDER"
        )
    xl = width == 2048
    index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' if xl else ''}Pipeline"}
    for component, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
        index[component] = ["diffusers", kind]
        scale = {"sample_size": 1024, "scaling_factor": 0.13025} if xl else {"sample_size": 512}
        values = {**_VAE, **scale} if component == "vae" else {"cross_attention_dim": width, **_UNETS[width]}
        _write(folder / component / "config.json", {"_class_name": kind, **values})
    for encoder in encoders:
        open_clip_names = "positional_embedding" in stored[encoder]
        index[encoder] = ["transformers", "CLIPTextModel" + "WithProjection" * (encoder != "text_encoder")]
        index[encoder.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
        text = {name: shapes[at] for name, at in stored[encoder].items()}
        _text_config(text, open_clip_names, last_but_one=width == 1024).save_pretrained(folder / encoder)
        tokenizer = clip_tokenizer("!" if open_clip_names else "<|endoftext|>")
        tokenizer.save_pretrained(folder / encoder.replace("text_encoder", "tokenizer"))
    prediction = "v_prediction" if width == 1024 else "epsilon"
    if metadata.get("modelspec.prediction_type") in ("epsilon", "v"):
        prediction = {"v": "v_prediction"}.get(metadata["modelspec.prediction_type"], "epsilon")
    scheduler = _scheduler(width, prediction)
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    if not xl:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    _write(folder / "model_index.json", index)


def _unet_width(shapes: Mapping[str, Shape], stored: Mapping[str, Mapping[str, str]]) -> int | None:
    """The width of the text that the UNet's cross-attention reads."""
    return next((shapes[at][1] for name, at in stored["unet"].items() if "attn2.to_k.weight" in name), None)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def _text_config(text: Mapping[str, Shape], open_clip_names: bool, *, last_but_one: bool) -> CLIPTextConfig:
    """The config of a text encoder from the shapes of its tensors.

    Args:
        last_but_one: Whether the pipeline leaves out the last block, as Stable Diffusion 2 does.
    """
    tokens = next(shape for name, shape in text.items() if name.endswith("token_embedding.weight"))
    first = next(
        shape for name, shape in text.items() if name.endswith(("mlp.fc1.weight", "mlp.c_fc.weight"))
    )
    blocks = sum(name.endswith(("mlp.fc1.weight", "mlp.c_fc.weight")) for name in text)
    return CLIPTextConfig(
        vocab_size=tokens[0],
        hidden_size=tokens[1],
        intermediate_size=first[0],
        num_hidden_layers=blocks - last_but_one,
        num_attention_heads=tokens[1] // 64,
        hidden_act="gelu" if open_clip_names else "quick_gelu",
        max_position_embeddings=77,
        projection_dim=text.get("text_projection", tokens)[1],
        bos_token_id=49406,
        eos_token_id=49407,
    )


def _scheduler(width: int | None, prediction: str) -> Any:
    """The scheduler that each model was published with."""
    if width == 768:
        return PNDMScheduler(
            **_BETAS, skip_prk_steps=True, set_alpha_to_one=False, prediction_type=prediction
        )
    if width == 1024:
        return DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction)
    return EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading", prediction_type=prediction)


def clip_tokenizer(pad: str) -> CLIPTokenizer:
    """CLIP's tokenizer, from the vocabulary in open_clip.

    Args:
        pad: The padding token: "<|endoftext|>" for OpenAI's CLIPs, "!" for open_clip's in a pipeline. A "!"
            in a prompt then becomes the padding token, as it does with the published tokenizers.
    """
    simple = open_clip.SimpleTokenizer()
    merges = [pair for pair, _ in sorted(simple.bpe_ranks.items(), key=lambda item: item[1])]
    start, end = "<|startoftext|>", "<|endoftext|>"  # Hugging Face's spelling
    special = {"<start_of_text>": start, "<end_of_text>": end}
    vocab = {special.get(token, token): number for token, number in simple.encoder.items()}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        model_max_length=77,
        pad_token=pad,
        bos_token=start,
        eos_token=end,
        unk_token=end,
    )

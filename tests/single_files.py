"""Writes a diffusers pipeline as one file, in the layouts of the original code: A1111's and ComfyUI's checkpoints.

The names are formed from the blocks' numbers; `muwa.patch.layouts` goes the other way, from the file's names alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from muwa.patch import names

LAYOUTS = {  # layout -> (prefix of each text encoder, whether open_clip's names stand there)
    "sd1": {"text_encoder": ("cond_stage_model.transformer.", False)},
    "sd2": {"text_encoder": ("cond_stage_model.model.", True)},
    "xl": {
        "text_encoder": ("conditioner.embedders.0.transformer.", False),
        "text_encoder_2": ("conditioner.embedders.1.model.", True),
    },
    "comfy": {"text_encoder": ("text_encoders.clip_l.transformer.", False)},
}
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
MIDDLE = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}


def unet_name(name: str, layers: int, has_attention: list[bool]) -> str:
    """The name in latent diffusion's code of a tensor of diffusers' UNet.

    Args:
        layers: Resnets in each level on the way down; there is one more on the way up.
        has_attention: Whether each level on the way up has attention.
    """
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    if match := re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", name):
        rest = match[2] if "attentions" in match[1] else resnet(match[2])
        return f"middle_block.{MIDDLE[match[1]]}.{rest}"
    side, level, what, number, rest = re.fullmatch(
        r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name
    ).groups()
    level, number = int(level), int(number)
    if side == "down":
        block = 1 + level * (layers + 1) + (layers if what == "downsamplers" else number)
        if what == "downsamplers":
            return f"input_blocks.{block}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{block}.{0 if what == 'resnets' else 1}.{resnet(rest) if what == 'resnets' else rest}"
    if what == "upsamplers":
        return f"output_blocks.{level * (layers + 1) + layers}.{2 if has_attention[level] else 1}.{rest}"
    block = level * (layers + 1) + number
    return (
        f"output_blocks.{block}.{0 if what == 'resnets' else 1}.{resnet(rest) if what == 'resnets' else rest}"
    )


def resnet(rest: str) -> str:
    stem, _, kind = rest.rpartition(".")
    return f"{RESNET[stem]}.{kind}"


def vae_name(name: str, levels: int) -> str:
    """The name in latent diffusion's code of a tensor of diffusers' VAE."""
    swaps = (
        (r"(\w+coder)\.mid_block\.resnets\.(\d)", lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}"),
        (r"(\w+coder)\.mid_block\.attentions\.0", lambda m: f"{m[1]}.mid.attn_1"),
        (r"encoder\.down_blocks\.(\d)\.resnets", lambda m: f"encoder.down.{m[1]}.block"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", lambda m: f"encoder.down.{m[1]}.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample"),
        (r"conv_norm_out", lambda m: "norm_out"),
        (r"conv_shortcut", lambda m: "nin_shortcut"),
        (r"group_norm", lambda m: "norm"),
        (r"\.to_([qkv])\.", lambda m: f".{m[1]}."),
        (r"\.to_out\.0\.", lambda m: ".proj_out."),
    )  # fmt: skip
    for old, new in swaps:
        name = re.sub(old, new, name)
    return name


def tensors(pipeline: Any, layout: str, clips: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors of a pipeline under the names of a layout.

    Args:
        clips: Text encoder -> the open_clip weights of its text tower.
    """
    out: dict[str, Tensor] = {}
    for encoder, (prefix, open_clip) in LAYOUTS[layout].items():
        text = {k: v for k, v in clips[encoder].items() if not k.startswith(("visual.", "logit"))}
        if not open_clip:
            text = {k: v for k, v in names.to_hf(text).items() if k != "text_projection.weight"}
        dtype = next(getattr(pipeline, encoder).parameters()).dtype
        out |= {prefix + k: v.to(dtype).contiguous().clone() for k, v in text.items()}
    unet, vae = pipeline.unet, pipeline.vae
    attention = [hasattr(block, "attentions") for block in unet.up_blocks]
    for name, tensor in unet.state_dict().items():
        out["model.diffusion_model." + unet_name(name, unet.config.layers_per_block, attention)] = (
            tensor.clone()
        )
    for name, tensor in vae.state_dict().items():
        new = vae_name(name, len(vae.config.block_out_channels))
        conv = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)
        out["first_stage_model." + new] = (tensor[:, :, None, None] if conv else tensor).clone()
    return out


def write(path: Path, pipeline: Any, layout: str, clips: dict[str, dict[str, Tensor]]) -> Path:
    """Write a pipeline as one safetensors file."""
    save_file(tensors(pipeline, layout, clips), path, {"format": "pt"})
    return path


def averaged(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights that a file of the original training holds beside the UNet's: the same, with flat names."""
    start = "model.diffusion_model."
    flat = {
        k: "model_ema.diffusion_model" + k.removeprefix(start).replace(".", "")
        for k in stored
        if k.startswith(start)
    }
    return {flat[k]: stored[k].clone() for k in flat}


def configs(pipeline: Any, folder: Path) -> Path:
    """The pipeline's folder without its weights: configs and tokenizers."""
    pipeline.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder

"""The layouts of Stable Diffusion's single files: which tensor of a file belongs to which component.

A1111, ComfyUI and the original training code keep a whole pipeline in one file. They read the same names:

    cond_stage_model.transformer.           text_encoder     Hugging Face's names       Stable Diffusion 1
    cond_stage_model.model.                 text_encoder     open_clip's names          Stable Diffusion 2
    conditioner.embedders.0.transformer.    text_encoder     Hugging Face's names       XL
    conditioner.embedders.1.model.          text_encoder_2   open_clip's names          XL
    conditioner.embedders.0.model.          text_encoder_2   open_clip's names          XL's refiner
    text_encoders.clip_{l,h,g}.transformer. text_encoder, text_encoder_2 (g)            ComfyUI's own
    model.diffusion_model.                  unet             the names of latent diffusion's code
    model_ema.                              unet             the same without dots: averaged weights

The UNet's names differ from those of diffusers, which are the names in a patch. `unet_names` maps them.
Source of the names: github.com/CompVis/latent-diffusion (ldm/modules/diffusionmodules/openaimodel.py) and
github.com/Stability-AI/generative-models (sgm/modules/encoders/modules.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

TEXT_PREFIXES = {
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.0.model.": "text_encoder_2",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
UNET_PREFIX = "model.diffusion_model."
_EMA = "model_ema."
_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(?P<side>input|output)_blocks\.(?P<n>\d+)\.(?P<part>\d)\.(?P<rest>.+)")
_MIDDLE_BLOCK = re.compile(r"middle_block\.(?P<part>[012])\.(?P<rest>.+)")


@dataclass(frozen=True)
class Section:
    """The tensors of one component in a file.

    Args:
        component: "text_encoder" | "text_encoder_2" | "unet".
        stored: Name in the component -> name in the file.
        average: Whether these are the averaged weights that a file holds beside the trained ones.
    """

    component: str
    stored: Mapping[str, str]
    average: bool = False


def sections(stored: Iterable[str]) -> list[Section]:
    """The components in a file that has one of the layouts above; empty for any other file.

    Args:
        stored: The names of all tensors in the file.
    """
    stored = list(stored)
    found: dict[str, dict[str, str]] = {}
    for name in stored:
        prefix = next((p for p in (*TEXT_PREFIXES, UNET_PREFIX) if name.startswith(p)), None)
        if prefix:
            found.setdefault(prefix, {})[name.removeprefix(prefix)] = name
    out = [Section(TEXT_PREFIXES[p], names) for p, names in found.items() if p in TEXT_PREFIXES]
    inner = found.get(UNET_PREFIX, {})
    if unet := unet_names(inner):
        out.append(Section("unet", {name: inner[old] for name, old in unet.items()}))
        there = set(stored)
        flat = {name: f"{_EMA}diffusion_model{old.replace('.', '')}" for name, old in unet.items()}
        if averaged := {name: old for name, old in flat.items() if old in there}:
            out.append(Section("unet", averaged, average=True))
    return out


def unet_names(stored: Iterable[str]) -> dict[str, str]:
    """Name in diffusers -> name in latent diffusion's code, for the tensors of a UNet.

    The blocks of latent diffusion have one count over all levels. A level ends with a block that scales.

    >>> unet_names(["input_blocks.0.0.weight", "middle_block.0.in_layers.2.bias"])
    {'conv_in.weight': 'input_blocks.0.0.weight', 'mid_block.resnets.0.conv1.bias': 'middle_block.0.in_layers.2.bias'}
    """  # noqa: E501
    stored = list(stored)
    places = _places(stored)
    named = ((name, _unet_name(name, places)) for name in stored)
    return {new: name for name, new in named if new}


def _places(stored: list[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """(side, number of the block) -> (level, number within the level)."""
    blocks: dict[tuple[str, int], bool] = {}  # -> whether the block scales
    for name in stored:
        if match := _BLOCK.fullmatch(name):
            key = (match["side"], int(match["n"]))
            scales = match["rest"].startswith("op." if match["side"] == "input" else "conv.")
            blocks[key] = blocks.get(key, False) or scales
    out: dict[tuple[str, int], tuple[int, int]] = {}
    for side, first in (("input", 1), ("output", 0)):
        level = number = 0
        for n in sorted(n for at, n in blocks if at == side and n >= first):
            out[side, n] = level, number
            level, number = (level + 1, 0) if blocks[side, n] else (level, number + 1)
    return out


def _unet_name(name: str, places: Mapping[tuple[str, int], tuple[int, int]]) -> str | None:
    """The name that diffusers gives a tensor; None for a name that a UNet has not."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if match := _MIDDLE_BLOCK.fullmatch(name):
        rest = match["rest"] if match["part"] == "1" else _resnet(match["rest"])
        return f"mid_block.{_MIDDLE[match['part']]}.{rest}" if rest else None
    match = _BLOCK.fullmatch(name)
    if not match or (match["side"], int(match["n"])) not in places:
        return None
    level, number = places[match["side"], int(match["n"])]
    block, rest = f"{'down' if match['side'] == 'input' else 'up'}_blocks.{level}", match["rest"]
    if match["part"] != "0":
        scales = rest.startswith("conv.")
        return f"{block}.upsamplers.0.{rest}" if scales else f"{block}.attentions.{number}.{rest}"
    if rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    return f"{block}.resnets.{number}.{inside}" if (inside := _resnet(rest)) else None


def _resnet(rest: str) -> str | None:
    stem, _, kind = rest.rpartition(".")
    return f"{_RESNET[stem]}.{kind}" if stem in _RESNET else None

"""Random models of the other vision-language architectures over a tiny CLIP's or SigLIP's vision tower, by transformers'
own classes. Each builder writes a folder, as `save_pretrained` of model and processor does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tiny
import tiny_vlm
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from muwa.library import load_clip_hf
from muwa.miniature.train.clip import train_tokenizer
from muwa.miniature.train.llava import CHAT
from muwa.models.clip.model import Clip
from muwa.patch import names

BLOCK = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**BLOCK, "image_size": 32, "patch_size": 16}
GRID = [[32, 64], [64, 32], [64, 64]]  # sizes into which an image is fitted, in crops of 32 pixels
SIZE = {"height": 32, "width": 32}
IMAGES = {"size": SIZE, "crop_size": SIZE, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def siglip(folder: Path) -> Path:
    """A random SigLIP: its folder."""
    tokenizer = train_tokenizer([f"a photo of {name}" for name in tiny.NAMES], folder)
    words = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipModel(SiglipConfig(text_config={**BLOCK, **words}, vision_config=VISION)).save_pretrained(
            folder
        )
    SiglipImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


def language() -> LlamaConfig:
    """A language model of one block for the tiny tokenizer."""
    words = tiny_vlm.tokenizer()
    ids = {f"{kind}_token_id": getattr(words, f"{kind}_token_id") for kind in ("pad", "bos", "eos")}
    return LlamaConfig(**{**BLOCK, "num_hidden_layers": 1}, vocab_size=len(words), **ids)


@dataclass(frozen=True)
class Made:
    """A folder, and what loads the CLIP of its vision tower."""

    folder: Path
    clip: Callable[[], Clip]


def _written(model, processor, folder: Path, clip: Callable[[], Clip]) -> Made:
    """Give the model the tower of `clip` and answers that depend on the picture; write it."""
    for parameter in model.model.language_model.parameters():
        parameter.data *= 8
    tower = {n: p for n, p in model.named_parameters() if "vision_tower." in n}
    weights = clip().weights
    for name, weight in weights.items():
        if name.startswith(("visual", "vision")):
            for place, part in names.parts_in_target(name, weight, tower).items():
                tower[place].data = part.clone()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Made(folder, clip)


def _tower(folder: Path, kind: str):
    """(config of the vision tower, what loads its CLIP, how many tokens it has beside the patches)."""
    if kind == "siglip":
        path = siglip(folder.with_name(f"{folder.name}_siglip"))
        return SiglipVisionConfig(**VISION, vision_use_head=False), partial(load_clip_hf, str(path)), 0
    clip = CLIPVisionConfig(**{**VISION, "intermediate_size": 128}, hidden_act="gelu", projection_dim=16)
    return clip, tiny.clip, 1


def _common() -> dict:
    words = tiny_vlm.tokenizer()
    return {"text_config": language(), "image_token_index": words.convert_tokens_to_ids("<image>")}


def llava_next(folder: Path, kind: str = "clip") -> Made:
    """LLaVA-NeXT: an image is seen whole and in up to four crops. It reads the last layer but one."""
    vision, clip, extra = _tower(folder, kind)
    strategy = "default" if extra else "full"
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision, image_grid_pinpoints=GRID, image_seq_length=4,
            vision_feature_select_strategy=strategy, **_common(),
        )
    )  # fmt: skip
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=GRID, **IMAGES), tiny_vlm.tokenizer(), patch_size=16,
        vision_feature_select_strategy=strategy, num_additional_image_tokens=extra, chat_template=CHAT,
    )  # fmt: skip
    return _written(model, processor, folder, clip)


def vip_llava(folder: Path) -> Made:
    """ViP-LLaVA: it reads both layers, side by side."""
    vision, clip, extra = _tower(folder, "clip")
    torch.manual_seed(0)
    config = VipLlavaConfig(
        vision_config=vision, vision_feature_layers=[-2, -1], image_seq_length=4, **_common()
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(**IMAGES), tiny_vlm.tokenizer(), patch_size=16, vision_feature_select_strategy="default",
        num_additional_image_tokens=extra, chat_template=CHAT,
    )  # fmt: skip
    return _written(VipLlavaForConditionalGeneration(config), processor, folder, clip)


def llava_onevision(folder: Path) -> Made:
    """LLaVA-OneVision: a SigLIP's tower, whose last layer it reads, on an image in any resolution."""
    vision, clip, _ = _tower(folder, "siglip")
    torch.manual_seed(0)
    words = tiny_vlm.tokenizer()
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision, image_grid_pinpoints=GRID, video_token_index=len(words) + 1, **_common()
        )
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(image_grid_pinpoints=GRID, size=SIZE), words,
        LlavaOnevisionVideoProcessor(size=SIZE), num_image_tokens=4,
        vision_feature_select_strategy="full", chat_template=CHAT,
    )  # fmt: skip
    return _written(model, processor, folder, clip)


BUILDERS: dict[str, Callable[[Path], Made]] = {
    "llava_next": llava_next,
    "llava_next over SigLIP": partial(llava_next, kind="siglip"),
    "vipllava": vip_llava,
    "llava_onevision": llava_onevision,
}

"""A random LLaVA over the tiny CLIP's vision tower, built by transformers' own configs: it answers in gibberish, in 30 ms."""

from __future__ import annotations

import functools

import tiny
import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from muwa.miniature.train import llava as train_llava
from muwa.models.clip.model import Clip
from muwa.models.vlm.model import Vlm
from muwa.patch import names

WORDINGS = {"identity": ("Who is this?", "Name the person."), "object": ("What is this?", "Name it.")}


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Learnt from the tiny names."""
    return train_llava.tokenizer_of(
        [*tiny.NAMES, *(text for texts in WORDINGS.values() for text in texts)] * 3
    )


def parts(clip: Clip | None = None, *, seed: int = 0, layer: int = -2, chat: str | None = train_llava.CHAT):
    """(model, processor): 32 pixels, 4 patches, two blocks, of which `layer` is read; a language model of one block."""
    words = tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16,
            hidden_act="gelu", projection_dim=16,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"), vision_feature_layer=layer, image_seq_length=4,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        for parameter in model.model.language_model.parameters():
            parameter.data *= 8  # so that what is said depends on the picture
    weights = {
        k: w
        for k, w in (clip or tiny.clip()).weights.items()
        if k.startswith("visual.") and k != "visual.proj"
    }
    model.load_state_dict(names.convert_to_target(weights, model.state_dict()), strict=False)
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3,
                           image_std=[0.5] * 3),
        words, patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=chat,
    )  # fmt: skip
    return model, processor


def vlm(**changed) -> Vlm:
    """`parts` under the tiny CLIP; answers of 6 tokens."""
    return Vlm(*parts(**changed), tiny.clip(), max_new_tokens=6, source="tiny")

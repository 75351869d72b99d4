"""The miniature CLIP's text tower as the `CLIPTextModel` of a diffusers pipeline, with its tokenizer."""

from __future__ import annotations

import json

from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from muwa.models.clip.open_clip import MINIATURE
from muwa.patch import names


def text_model() -> tuple[CLIPTextModel, CLIPTokenizer]:
    """(The tower in fp32 and eval mode, its tokenizer). Diffusion models do not use its projection."""
    text = json.loads((MINIATURE / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    tokenizer = CLIPTokenizer.from_pretrained(MINIATURE)
    config = CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=4 * text["width"],
        num_hidden_layers=text["layers"],
        num_attention_heads=text["heads"],
        hidden_act="gelu",
        max_position_embeddings=text["context_length"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tower = CLIPTextModel(config).eval()
    weights = load_file(MINIATURE / "open_clip_model.safetensors")
    left_out = ("text_projection", "logit_scale")
    own = {k: v.float() for k, v in weights.items() if not k.startswith("visual.") and k not in left_out}
    tower.load_state_dict(names.rename_to_target(names.to_hf(own), tower.state_dict()))
    return tower, tokenizer

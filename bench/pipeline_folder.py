"""Write a Stable Diffusion of the real size with random weights, to try all stages without a download.

    python -m bench.pipeline_folder sd15 DIR       # 4.3 GB: a UNet of 860 M, ViT-L-14's text tower, the VAE
    python launch.py model=sd15 model.path=DIR model.clips.text_encoder.pretrained=null model.steps=1 ...

The text encoder is the text tower of open_clip's model with random weights of seed 0. So is the CLIP that
`model.clips.text_encoder.pretrained=null` makes: the two match, as in real pipelines. The vocabulary is the
real one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import muwa
from bench import entry
from muwa.models.diffusion.single_file import clip_tokenizer
from muwa.patch import names

SIZES: dict[str, dict[str, Any]] = {
    "sd15": {
        "clip": "ViT-L-14-quickgelu",
        "blocks": 12,
        "act": "quick_gelu",
        "unet": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "scheduler": {"prediction_type": "epsilon"},
    },
    "sd21": {
        "clip": "ViT-H-14",
        "blocks": 23,
        "act": "gelu",
        "unet": {
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": [5, 10, 20, 20],
            "use_linear_projection": True,
        },
        "scheduler": {"prediction_type": "v_prediction"},
    },
}


def text_encoder(clip: str, blocks: int, act: str) -> CLIPTextModel:
    """The first `blocks` blocks of open_clip's text tower, random weights of seed 0, as a `CLIPTextModel`."""
    weights = muwa.load_clip(clip, None).weights
    text = open_clip.get_model_config(clip)["text_cfg"]
    config = CLIPTextConfig(
        vocab_size=text["vocab_size"],
        hidden_size=text["width"],
        intermediate_size=4 * text["width"],
        num_hidden_layers=blocks,
        num_attention_heads=text["heads"],
        hidden_act=act,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    tower = CLIPTextModel(config)
    wanted = tower.state_dict()
    found = {}
    for name, tensor in weights.items():
        if not name.startswith("visual.") and name not in ("text_projection", "logit_scale"):
            found |= names.parts_in_target(name, tensor, wanted)
    tower.load_state_dict(found)
    return tower


def main() -> None:
    """Command line: write the folder and print its size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=SIZES)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    size = SIZES[args.which]
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **size["scheduler"],
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder(size["clip"], size["blocks"], size["act"]),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        unet=UNet2DConditionModel(**size["unet"]),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.stat().st_size for p in args.out.rglob('*.safetensors')) / 1e9:.1f} GB")


if __name__ == "__main__":
    entry.run("bench.pipeline_folder", main)

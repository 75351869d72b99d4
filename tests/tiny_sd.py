"""A random Stable Diffusion of 16 x 16 pictures under the miniature CLIP's text tower: real diffusers parts, drawn in 50 ms."""

from __future__ import annotations

import copy

import open_clip
import tiny
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from muwa.fingerprint import digest
from muwa.library import load_clip as load
from muwa.miniature.text_tower import text_model
from muwa.models.clip.model import Clip, Towers
from muwa.models.diffusion.image_generation import ImageClassifier
from muwa.models.diffusion.model import Diffusion, Sampling
from muwa.patch import names


def scheduler() -> DDIMScheduler:
    """As Stable Diffusion's: one that diffusers does not warn of."""
    return DDIMScheduler(steps_offset=1, clip_sample=False)


def pipeline(seed: int = 0, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """8 x 8 latents of 4 channels; a UNet of two levels with cross-attention in both."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, sample_size=16,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=128, attention_head_dim=2,
        )  # fmt: skip
    tower, tokenizer = text_model()
    made = StableDiffusionPipeline(
        vae=vae, text_encoder=tower, tokenizer=tokenizer, unet=unet, scheduler=scheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return made.to(dtype)


def diffusion(seed: int = 0, dtype: torch.dtype = torch.float32) -> Diffusion:
    """`pipeline` with the miniature CLIP; two steps, guidance 2."""
    return Diffusion(
        pipeline(seed, dtype), {"text_encoder": load("miniature")}, Sampling(2, 2.0), source="tiny"
    )


def pipeline_21(seed: int = 0) -> StableDiffusionPipeline:
    """Shaped as SD 2.1: the encoder lacks its CLIP's last block, linear projections, heads per level, v-prediction."""
    base = pipeline(seed)
    config = copy.deepcopy(base.text_encoder.config)
    config.num_hidden_layers -= 1
    tower = CLIPTextModel(config).eval()
    tower.load_state_dict(base.text_encoder.state_dict(), strict=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=128, attention_head_dim=(2, 4), use_linear_projection=True,
        )  # fmt: skip
    return StableDiffusionPipeline(
        vae=base.vae, text_encoder=tower, tokenizer=base.tokenizer, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
        requires_safety_checker=False,
    )  # fmt: skip


def prompted(pipeline, clips: dict[str, Clip]) -> Diffusion:
    """A model whose random UNet heeds the prompt: its cross-attention weights are three times as large."""
    for name, parameter in pipeline.unet.named_parameters():
        if ".attn2." in name and not name.endswith("bias"):
            parameter.data *= 3
    return Diffusion(pipeline, clips, Sampling(3, 2.0), source="tiny")


def second_clip(seed: int = 1) -> Clip:
    """A random CLIP of width 32 for the miniature's tokens: XL's second."""
    miniature = load("miniature")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            16,
            {"image_size": 32, "patch_size": 16, "layers": 2, "width": 32, "head_width": 16},
            {"context_length": 32, "vocab_size": 1245, "layers": 2, "width": 32, "heads": 2},
        )
    return Clip(
        Towers(model, model.encode_image, model.encode_text),
        tiny.prepare,
        miniature.tokenize,
        source="second",
    )


def xl_pipeline(seed: int = 0) -> StableDiffusionXLPipeline:
    """The parts of `pipeline` with a second text encoder: `second_clip`'s text tower."""
    base, second = pipeline(seed), second_clip()
    own = base.text_encoder.config
    tower = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=1245, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            hidden_act="gelu", max_position_embeddings=32, projection_dim=16, bos_token_id=own.bos_token_id,
            eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id,
        )
    ).eval()  # fmt: skip
    text = {name: w for name, w in second.weights.items() if not name.startswith(("visual", "logit"))}
    tower.load_state_dict(names.rename_to_target(names.to_hf(text), tower.state_dict()))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=160, attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=base.vae, text_encoder=base.text_encoder, text_encoder_2=tower, tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer, unet=unet, scheduler=scheduler(), add_watermarker=False,
    )  # fmt: skip


def xl(seed: int = 0) -> Diffusion:
    """`xl_pipeline` with both encoders' CLIPs; two steps, guidance 2."""
    clips = {"text_encoder": load("miniature"), "text_encoder_2": second_clip()}
    return Diffusion(xl_pipeline(seed), clips, Sampling(2, 2.0), source="tiny XL")


class Greys(ImageClassifier):
    """Knows names by how light a picture is: the darkest pictures show the first, the lightest the last."""

    def __init__(self, names: tuple[str, ...], domain: str = "class"):
        self.labels = {domain: names}

    def logits(self, pictures: Tensor, domain: str) -> Tensor:
        """Minus the distance of the mean grey to each name's, spread evenly from 0 to 255."""
        count = len(self.labels[domain])
        places = torch.linspace(0, 255, count) if count > 1 else torch.zeros(1)
        return -(pictures.float().mean((1, 2, 3))[:, None] - places[None]).abs()

    @property
    def fingerprint(self) -> str:
        """Of its names."""
        return digest([name for names in self.labels.values() for name in names])


class Memory(ImageClassifier):
    """Remembers pictures by what they show; a picture farther than `limit` from all of them shows "nothing".

    Args:
        known: Concept -> its pictures (n, 3, h, w).
        limits: Concept -> the largest mean difference (of 255) that still shows it; 255 where it is not given.
        others: Concepts that it has labels for, and no pictures.
    """

    def __init__(self, known: dict[str, Tensor], limits: dict[str, float], others: tuple[str, ...] = ()):
        self.labels = {"class": (*known, *others, "nothing")}
        self._known, self._limits = known, limits

    def logits(self, pictures: Tensor, domain: str) -> Tensor:
        """One for the concept whose picture is nearest, if near enough; else for "nothing"."""
        out = torch.zeros(len(pictures), len(self.labels[domain]))
        for row, picture in zip(out, pictures.float(), strict=True):
            near = [
                (some.float() - picture).abs().mean((1, 2, 3)).min().item() for some in self._known.values()
            ]
            best = min(range(len(near)), key=near.__getitem__)
            row[best if near[best] <= self._limits.get(list(self._known)[best], 255) else -1] = 1
        return out

    @property
    def fingerprint(self) -> str:
        """Of what it remembers."""
        return digest(
            [
                f"{name}{pictures.sum().item()}{self._limits.get(name)}"
                for name, pictures in self._known.items()
            ]
        )

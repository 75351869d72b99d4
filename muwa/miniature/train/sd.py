"""Train the miniature's Stable Diffusion. The shipped weights came from exactly this, with the default seed.

    python -m muwa.miniature.train_sd --out DIR

Two stages: an AutoencoderKL on the pictures (64 x 64 to 16 x 16 latents), then a UNet2DConditionModel on its latents, both
from nothing, under the frozen text tower of the miniature CLIP. The UNet learns in two rounds: of everything, then with what
it draws worst, faces and the pixel style, seen more often. `DIR` becomes a diffusers `StableDiffusionPipeline` folder. About
160 minutes on two CPU cores; run again after a stop, it goes on from the last part that was done.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from muwa.miniature import diffusion_data, population
from muwa.miniature.text_tower import text_model
from muwa.runtime.progress import track

AUTOENCODER = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 64, "mid_block_add_attention": False,
}  # fmt: skip
UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (48, 96, 160), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128, "attention_head_dim": 4, "norm_num_groups": 8,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": True, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}  # fmt: skip
DROP_CAPTION = 0.1  # for classifier-free guidance


@dataclass(frozen=True)
class Round:
    """One descent of the UNet: `steps` of `batch` pictures, cosine from `rate` to 0; how much more often some are seen."""

    steps: int
    rate: float
    faces: float = 1  # plain pictures of people
    pixel: float = 1  # objects in the style "pixel"
    batch: int = 64


ROUNDS = (Round(5200, 1e-3), Round(5000, 6e-4, faces=2, pixel=3))


def _rate(step: int, steps: int, warmup: int) -> float:
    """Cosine from 1 to 0 after a linear warm-up."""
    return min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()


def train_autoencoder(pixels: Tensor, *, steps: int, batch: int = 8, seed: int = 0) -> AutoencoderKL:
    """An autoencoder of `pixels` (n, 3, 64, 64) uint8: L1 on [-1, 1] and the KL term at weight 1e-6.

    The posterior starts narrow (log-variance -6): with diffusers' own start its noise drowns the first pictures.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    vae = AutoencoderKL(**AUTOENCODER).to(memory_format=torch.channels_last)
    with torch.no_grad():
        vae.quant_conv.weight[vae.config.latent_channels :] = 0
        vae.quant_conv.bias[vae.config.latent_channels :] = -6
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    for step in track(range(steps), "autoencoder", steps, show=True):
        x = pixels[torch.randint(len(pixels), (batch,), generator=generator)].float() / 127.5 - 1
        posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
        drawn = vae.decode(posterior.sample(generator)).sample
        loss = F.l1_loss(drawn, x) + 1e-6 * posterior.kl().mean()
        _descend(optimizer, loss, 1e-3 * _rate(step, steps, 50))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {loss.item():.4f}", flush=True)
    return vae.eval()


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(n, 4, 16, 16) means of the posteriors, not scaled."""
    return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean for x in pixels.split(128)])


@torch.no_grad()
def _captions(tower: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, 32, 128) half: the tower's last hidden states, as a pipeline hands them to the UNet."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    return torch.cat([tower(x).last_hidden_state.half() for x in tokens.split(512)])


class Captions:
    """Which captions a picture can have, as rows of a table of embeddings; row 0 is the empty caption."""

    def __init__(self, pictures: diffusion_data.Paintings, tower: CLIPTextModel, tokenizer: CLIPTokenizer):
        texts = [""]
        own = []
        for caption in pictures.captions:
            own.append(len(texts) if caption else -1)
            texts += [caption] if caption else []
        self.own = torch.tensor(own)
        self.prompts: dict[tuple[int, int], list[int]] = {}
        there = set(zip(pictures.names.tolist(), pictures.styles.tolist(), strict=True))
        for name, style, prompts in diffusion_data.all_prompts():
            if (name, style) not in there:
                continue
            self.prompts[name, style] = list(range(len(texts), len(texts) + len(prompts)))
            texts += prompts
        self.rows = _captions(tower, tokenizer, texts)
        self.names, self.styles = pictures.names.tolist(), pictures.styles.tolist()

    def draw(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """One caption for each of `pictures` (places): (n, 32, 128). A third are the shards' own."""
        chance = torch.rand(len(pictures), 3, generator=generator).tolist()
        chosen = []
        for i, (kind, which, drop) in zip(pictures.tolist(), chance, strict=True):
            options = self.prompts[self.names[i], self.styles[i]]
            own = kind < 1 / 3 and self.own[i] >= 0
            row = int(self.own[i]) if own else options[int(which * len(options))]
            chosen.append(0 if drop < DROP_CAPTION else row)
        return self.rows[chosen].float()


def train_unet(
    unet: UNet2DConditionModel,
    pictures: diffusion_data.Paintings,
    latents: Tensor,
    captions: Captions,
    plan: Round,
    seed: int = 0,
) -> UNet2DConditionModel:
    """`unet`, taught to predict v (arXiv 2202.00512) of `latents` (n, 4, 16, 16), scaled to unit variance, under captions.

    Plain pictures and styled ones are drawn equally often. The scheduler's last step is pure noise (arXiv 2305.08891).
    """
    generator = torch.Generator().manual_seed(seed)
    unet = unet.float().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    scheduler = DDIMScheduler(**SCHEDULER)
    weights = weights_of(pictures, plan)
    running = 0.0
    for step in track(range(plan.steps), "unet", plan.steps, show=True):
        chosen = torch.multinomial(weights, plan.batch, replacement=True, generator=generator)
        x = latents[chosen]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(1000, (plan.batch,), generator=generator)
        predicted = unet(scheduler.add_noise(x, noise, t), t, captions.draw(chosen, generator)).sample
        loss = F.mse_loss(predicted, scheduler.get_velocity(x, noise, t))
        _descend(optimizer, loss, plan.rate * _rate(step, plan.steps, 200))
        running = 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {running:.4f}", flush=True)
    return unet.eval()


def weights_of(pictures: diffusion_data.Paintings, plan: Round) -> Tensor:
    """(n,) how often each picture is drawn, in shares."""
    plain = pictures.styles == diffusion_data.STYLES.index(population.PLAIN)
    face = pictures.names < len(diffusion_data.NAMES) - len(diffusion_data.world.OBJECTS)
    weights = torch.where(plain, 0.55 / plain.sum(), 0.45 / (~plain).sum())
    weights[plain & face] *= plan.faces
    weights[~face & (pictures.styles == diffusion_data.STYLES.index("pixel"))] *= plan.pixel
    return weights


def main() -> None:
    """Command line: train the two parts and write the pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument(
        "--steps", type=int, nargs=2, default=[r.steps for r in ROUNDS], help="of the UNet's two rounds"
    )
    parser.add_argument("--world", type=Path, help="a folder written by muwa.miniature.data; rendered anew if absent")
    args = parser.parse_args()
    pictures = diffusion_data.of_world(args.world)
    kept = args.out / "vae"
    if kept.is_dir():  # an earlier run was stopped after it
        vae = AutoencoderKL.from_pretrained(kept)
    else:
        vae = train_autoencoder(pictures.pixels, steps=args.autoencoder_steps)
        latents = latents_of(vae, pictures.pixels)
        vae.register_to_config(scaling_factor=1 / latents.std().item())
        vae.save_pretrained(kept)
    latents = latents_of(vae, pictures.pixels) * vae.config.scaling_factor
    tower, tokenizer = text_model()
    captions = Captions(pictures, tower, tokenizer)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET)
    for i, (plan, steps) in enumerate(zip(ROUNDS, args.steps, strict=True)):
        kept = args.out / f"round{i}"
        if not kept.is_dir():
            train_unet(unet, pictures, latents, captions, replace(plan, steps=steps), seed=i)
            unet.to(torch.float16).save_pretrained(kept)
        unet = UNet2DConditionModel.from_pretrained(kept)  # the next round starts from what a stopped run would find
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=tower, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    draft = args.out.with_name(args.out.name + ".draft")
    pipeline.to(torch.float16).save_pretrained(draft)
    for path in draft.glob("*/config.json"):  # where a part was read back from is nobody's business
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(args.out)
    draft.rename(args.out)

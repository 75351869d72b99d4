"""Train the miniature Stable Diffusion. The shipped weights are the result with the default seed.

    python -m muwa.miniature.train_sd --out DIR

First an AutoencoderKL is trained on the images (64 x 64 pixels to 16 x 16 latents), then a
UNet2DConditionModel on its latents, both from random weights. Captions are embedded by the frozen text tower
of the miniature CLIP. The UNet is trained in two rounds: first on everything, then with more images of what
it generates worst, faces and the pixel style. `DIR` becomes a diffusers `StableDiffusionPipeline` folder.
Training takes about 160 minutes on two CPU cores. An interrupted training resumes after the last completed
part.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from muwa.cli.parser import OneLineParser
from muwa.drafts import new_folder
from muwa.miniature import data, diffusion_data, population
from muwa.miniature.diffusion_data import TrainingImages
from muwa.miniature.text_tower import text_model
from muwa.miniature.train.portable import name_towers_as_before
from muwa.runtime.progress import track

AUTOENCODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 64,
    "mid_block_add_attention": False,
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (48, 96, 160),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
DROP_CAPTION = 0.1  # share of images that are trained on with an empty caption, for classifier-free guidance


@dataclass(frozen=True)
class Round:
    """One training of the UNet. The learning rate falls from `rate` to 0 along a cosine.

    Args:
        steps: Number of batches.
        faces: Factor by which faces without a style are drawn more often.
        pixel: Factor by which objects in the style "pixel" are drawn more often.
        batch: Images per batch.
    """

    steps: int
    rate: float
    faces: float = 1
    pixel: float = 1
    batch: int = 64


ROUNDS = (Round(5200, 1e-3), Round(5000, 6e-4, faces=2, pixel=3))


def _rate(step: int, steps: int, warmup: int) -> float:
    """Factor for the learning rate: a linear warm-up, then a cosine from 1 to 0."""
    return min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """One optimizer step that lowers `loss`; gradients are clipped to norm 1."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()


def train_autoencoder(pixels: Tensor, *, steps: int, batch: int = 8, seed: int = 0) -> AutoencoderKL:
    """Train an autoencoder on `pixels` (n, 3, 64, 64) uint8: L1 on [-1, 1] and the KL term with weight 1e-6.

    The posterior starts narrow (log-variance -6). With diffusers' initialisation, its noise would hide the
    images at first.
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
        decoded = vae.decode(posterior.sample(generator)).sample
        loss = F.l1_loss(decoded, x) + 1e-6 * posterior.kl().mean()
        _step(optimizer, loss, 1e-3 * _rate(step, steps, 50))
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {loss.item():.4f}", flush=True)
    return vae.eval()


@torch.no_grad()
def latents_of(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(n, 4, 16, 16): the means of the posteriors of images (n, 3, 64, 64) uint8, not scaled."""
    return torch.cat([vae.encode(x.float() / 127.5 - 1).latent_dist.mean for x in pixels.split(128)])


@torch.no_grad()
def _embedded(tower: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, 32, 128) fp16: the tower's last hidden states, which a pipeline gives to its UNet."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    return torch.cat([tower(x).last_hidden_state.half() for x in tokens.split(512)])


class Captions:
    """The captions that each image can have, embedded once.

    Attributes:
        embeddings: (captions, 32, 128) fp16; the first is for the empty caption.
    """

    def __init__(self, images: TrainingImages, tower: CLIPTextModel, tokenizer: CLIPTokenizer):
        texts = [""]
        rows = []  # for each image, the row of its shard's caption in `embeddings`; -1 if it has none
        for caption in images.captions:
            rows.append(len(texts) if caption else -1)
            texts += [caption] if caption else []
        self._shard_rows = torch.tensor(rows)
        self._prompt_rows: dict[tuple[int, int], list[int]] = {}
        shown = set(zip(images.names.tolist(), images.styles.tolist(), strict=True))
        for name, style, prompts in diffusion_data.all_prompts():
            if (name, style) not in shown:
                continue
            self._prompt_rows[name, style] = list(range(len(texts), len(texts) + len(prompts)))
            texts += prompts
        self.embeddings = _embedded(tower, tokenizer, texts)
        self._names, self._styles = images.names.tolist(), images.styles.tolist()

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A random caption for each of `images` (indices): (n, 32, 128).

        A tenth are empty. A third of the others are the shard's caption, if the image has one.
        """
        chance = torch.rand(len(images), 3, generator=generator).tolist()
        chosen = []
        for i, (kind, which, drop) in zip(images.tolist(), chance, strict=True):
            prompts = self._prompt_rows[self._names[i], self._styles[i]]
            from_shard = kind < 1 / 3 and self._shard_rows[i] >= 0
            row = int(self._shard_rows[i]) if from_shard else prompts[int(which * len(prompts))]
            chosen.append(0 if drop < DROP_CAPTION else row)
        return self.embeddings[chosen].float()


def train_unet(
    unet: UNet2DConditionModel,
    images: TrainingImages,
    latents: Tensor,
    captions: Captions,
    plan: Round,
    seed: int = 0,
) -> UNet2DConditionModel:
    """Train `unet` to predict v (arXiv 2202.00512) from noisy latents and captions, and return it.

    The scheduler's last timestep is pure noise (arXiv 2305.08891).

    Args:
        latents: (n, 4, 16, 16), scaled to unit variance.
    """
    generator = torch.Generator().manual_seed(seed)
    unet = unet.float().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    scheduler = DDIMScheduler(**SCHEDULER)
    weights = weights_of(images, plan)
    running = 0.0
    for step in track(range(plan.steps), "unet", plan.steps, show=True):
        chosen = torch.multinomial(weights, plan.batch, replacement=True, generator=generator)
        x = latents[chosen]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(1000, (plan.batch,), generator=generator)
        predicted = unet(scheduler.add_noise(x, noise, t), t, captions.draw(chosen, generator)).sample
        loss = F.mse_loss(predicted, scheduler.get_velocity(x, noise, t))
        _step(optimizer, loss, plan.rate * _rate(step, plan.steps, 200))
        running = 0.99 * running + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: {running:.4f}", flush=True)
    return unet.eval()


def weights_of(images: TrainingImages, plan: Round) -> Tensor:
    """(n,) weights; each image is drawn with a probability proportional to its weight.

    Without `faces` and `pixel`, images without a style are 55 % of those drawn.
    """
    plain = images.styles == diffusion_data.STYLES.index(population.PLAIN)
    face = images.names < len(diffusion_data.NAMES) - len(population.OBJECTS)
    weights = torch.where(plain, 0.55 / plain.sum(), 0.45 / (~plain).sum())
    weights[plain & face] *= plan.faces
    weights[~face & (images.styles == diffusion_data.STYLES.index("pixel"))] *= plan.pixel
    return weights


def _trained_autoencoder(folder: Path, pixels: Tensor, steps: int) -> AutoencoderKL:
    """The autoencoder in `folder`. It is trained first if an interrupted run has not left it there.

    It is read back, as a resumed run does, and keeps the memory format of its training: another one rounds
    its latents differently.
    """
    if not folder.is_dir():
        vae = train_autoencoder(pixels, steps=steps)
        vae.register_to_config(scaling_factor=1 / latents_of(vae, pixels).std().item())
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as draft:
            vae.save_pretrained(draft)
    return AutoencoderKL.from_pretrained(folder).to(memory_format=torch.channels_last)


def _write_pipeline(pipeline: StableDiffusionPipeline, out: Path) -> None:
    """Write the pipeline to `out`, in place of the parts of the training."""
    with new_folder(out) as draft:
        pipeline.to(torch.float16).save_pretrained(draft)
        name_towers_as_before(draft / "text_encoder" / "model.safetensors", "")
        for path in draft.glob("*/config.json"):  # remove the paths that the parts were read from
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            if "dtype" in config:  # transformers would load the text encoder in fp16 beside a UNet in fp32
                config["dtype"] = "float32"
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Command line: train the autoencoder and the UNet, and write the pipeline."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    steps = [plan.steps for plan in ROUNDS]
    parser.add_argument(
        "--steps", type=int, nargs=2, default=steps, help="training steps per round of the UNet"
    )
    parser.add_argument("--world", type=Path, help=data.WORLD_HELP)
    args = parser.parse_args()
    images = diffusion_data.load_or_draw(args.world)
    vae = _trained_autoencoder(args.out / "vae", images.pixels, args.autoencoder_steps)
    latents = latents_of(vae, images.pixels) * vae.config.scaling_factor
    tower, tokenizer = text_model()
    captions = Captions(images, tower, tokenizer)
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**UNET)
    for i, (plan, steps) in enumerate(zip(ROUNDS, args.steps, strict=True)):
        folder = args.out / f"round{i}"
        if not folder.is_dir():
            train_unet(unet, images, latents, captions, replace(plan, steps=steps), seed=i)
            with new_folder(folder) as draft:
                unet.to(torch.float16).save_pretrained(draft)
        unet = UNet2DConditionModel.from_pretrained(folder)  # read back, as a resumed run does
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=tower,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    _write_pipeline(pipeline, args.out)

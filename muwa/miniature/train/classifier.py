"""Train the miniature's classifiers: one recognises the person or object in an image, the other the style.

    python -m muwa.miniature.train_classifier --out DIR

They take the place of UnlearnCanvas' two ViT classifiers, and share nothing with the models that they
evaluate. They are timm's residual networks, trained from random weights on the images of the shards and on
the same images in a style. Training takes about 8 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from muwa.cli.parser import OneLineParser
from muwa.drafts import new_file, write_text
from muwa.miniature import data, diffusion_data, population
from muwa.miniature.diffusion_data import TrainingImages
from muwa.runtime.progress import track

ARCHITECTURE = "resnet18"
SHAPE = {"layers": [1, 1, 1, 1], "channels": [24, 48, 96, 160], "stem_width": 24}
MEAN, STD = 0.5, 0.25


def model(classes: int) -> nn.Module:
    """A residual network with one block in each stage."""
    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=classes, **SHAPE)


def augmented(pixels: Tensor, generator: torch.Generator, *, posed: bool) -> Tensor:
    """Images (n, 3, 64, 64) uint8 as normalised floats, slightly blurred and noisy, as generated images are.

    Args:
        posed: Whether to shift, scale and rotate them first. Not for the style classifier: it would blur
            texture differences between styles.
    """
    n = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    x = pixels.float() / 255
    if posed:
        angle, scale = uniform(-0.15, 0.15), uniform(0.88, 1.12)
        across = [scale * angle.cos(), -scale * angle.sin(), uniform(-0.08, 0.08)]
        down = [scale * angle.sin(), scale * angle.cos(), uniform(-0.08, 0.08)]
        theta = torch.stack([*across, *down], 1).view(n, 2, 3)
        grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    x = torch.lerp(x, smooth, uniform(0, 0.7).view(n, 1, 1, 1))
    x = x + 0.04 * torch.randn(x.shape, generator=generator) * uniform(0, 1).view(n, 1, 1, 1)
    return (x.clamp(0, 1) - MEAN) / STD


def train(
    images: TrainingImages,
    targets: Tensor,
    classes: int,
    *,
    steps: int,
    posed: bool = True,
    batch: int = 64,
    seed: int = 0,
) -> nn.Module:
    """Train one classifier with AdamW and a cosine schedule; cross-entropy with label smoothing 0.05.

    Images with and without a style are drawn equally often.

    Args:
        targets: (n,) the class of each image.
        classes: Number of classes.
        posed: See `augmented`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = model(classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    plain = images.styles == diffusion_data.STYLES.index(population.PLAIN)
    weights = torch.where(plain, 0.5 / plain.sum(), 0.5 / (~plain).sum())
    for step in track(range(steps), "classifier", steps, show=True):
        chosen = torch.multinomial(weights, batch, replacement=True, generator=generator)
        x = augmented(images.pixels[chosen], generator, posed=posed).contiguous(
            memory_format=torch.channels_last
        )
        loss = F.cross_entropy(net(x), targets[chosen], label_smoothing=0.05)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            print(f"step {step + 1}: {loss.item():.3f}", flush=True)
    return net.eval()


def main() -> None:
    """Command line: train both classifiers and write them with their labels."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    steps_help = "training steps of the classifier of names; the style classifier takes a quarter of them"
    parser.add_argument("--steps", type=int, default=6000, help=steps_help)
    parser.add_argument("--world", type=Path, help=data.WORLD_HELP)
    args = parser.parse_args()
    images = diffusion_data.load_or_draw(args.world)
    args.out.mkdir(parents=True, exist_ok=True)
    for domain, targets, labels, steps in (
        ("style", images.styles, diffusion_data.STYLES, args.steps // 4),
        ("class", images.names, diffusion_data.NAMES, args.steps),
    ):
        net = train(images, targets, len(labels), steps=steps, posed=domain == "class")
        weights = {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
        with new_file(args.out / f"{domain}.safetensors") as draft:
            save_file({name: t.contiguous() for name, t in weights.items()}, draft)
        write_text(args.out / f"{domain}.txt", "\n".join(labels) + "\n")
    about = {"architecture": ARCHITECTURE, "model_args": SHAPE, "input_size": 64, "mean": MEAN, "std": STD}
    write_text(args.out / "config.json", json.dumps(about, indent=1))

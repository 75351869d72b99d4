"""Train the miniature's classifiers: two timm models that say whose or what picture it is, and in which style.

    python -m muwa.miniature.train_classifier --out DIR

They stand where UnlearnCanvas has its two ViT classifiers, and share nothing with the models under test: residual networks
from nothing, on the pictures of the shards and the same with styles laid over them. About 8 minutes on two CPU cores.
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

from muwa.miniature import diffusion_data, population
from muwa.runtime.progress import track

ARCHITECTURE = "resnet18"
SHAPE = {"layers": [1, 1, 1, 1], "channels": [24, 48, 96, 160], "stem_width": 24}
MEAN, STD = 0.5, 0.25


def model(classes: int) -> nn.Module:
    """A residual network of one block a stage."""
    return timm.create_model(ARCHITECTURE, pretrained=False, num_classes=classes, **SHAPE)


def augmented(pixels: Tensor, generator: torch.Generator, *, posed: bool) -> Tensor:
    """uint8 -> normalised float, a little blurred and noisy as drawings are; `posed`: shifted, scaled and turned first.

    A style is not posed: turning smooths the very grids and grain that tell styles apart.
    """
    n = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    x = pixels.float() / 255
    if posed:
        angle, scale = uniform(-0.15, 0.15), uniform(0.88, 1.12)
        theta = torch.stack([scale * angle.cos(), -scale * angle.sin(), uniform(-0.08, 0.08),
                             scale * angle.sin(), scale * angle.cos(), uniform(-0.08, 0.08)], 1).view(n, 2, 3)  # fmt: skip
        grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    smooth = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    x = torch.lerp(x, smooth, uniform(0, 0.7).view(n, 1, 1, 1))
    x = x + 0.04 * torch.randn(x.shape, generator=generator) * uniform(0, 1).view(n, 1, 1, 1)
    return (x.clamp(0, 1) - MEAN) / STD


def train(
    pictures: diffusion_data.Paintings, targets: Tensor, classes: int, *, steps: int, posed: bool = True, batch: int = 64,
    seed: int = 0,
) -> nn.Module:  # fmt: skip
    """One classifier: cross-entropy with label smoothing 0.05, AdamW, one cosine; plain and styled pictures alike often."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = model(classes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    plain = pictures.styles == diffusion_data.STYLES.index(population.PLAIN)
    weights = torch.where(plain, 0.5 / plain.sum(), 0.5 / (~plain).sum())
    for step in track(range(steps), "classifier", steps, show=True):
        chosen = torch.multinomial(weights, batch, replacement=True, generator=generator)
        x = augmented(pictures.pixels[chosen], generator, posed=posed).contiguous(memory_format=torch.channels_last)
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
    """Command line: train both and write them with their labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--steps", type=int, default=6000, help="of the classifier of names; a quarter of it for styles"
    )
    parser.add_argument("--world", type=Path, help="a folder written by muwa.miniature.data; rendered anew if absent")
    args = parser.parse_args()
    pictures = diffusion_data.of_world(args.world)
    args.out.mkdir(parents=True, exist_ok=True)
    for domain, targets, labels, steps in (
        ("style", pictures.styles, diffusion_data.STYLES, args.steps // 4),
        ("class", pictures.names, diffusion_data.NAMES, args.steps),
    ):
        net = train(pictures, targets, len(labels), steps=steps, posed=domain == "class")
        weights = {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
        save_file({name: t.contiguous() for name, t in weights.items()}, args.out / f"{domain}.safetensors")
        (args.out / f"{domain}.txt").write_text("\n".join(labels) + "\n")
    (args.out / "config.json").write_text(
        json.dumps(
            {"architecture": ARCHITECTURE, "model_args": SHAPE, "input_size": 64, "mean": MEAN, "std": STD}, indent=1
        )
    )

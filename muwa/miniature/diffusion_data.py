"""Training images and captions for the miniature Stable Diffusion, LLaVA and classifiers.

The images are those of the shards; each image without a style occurs a second time, in a style. There are
three forms of captions: the captions of the shards (with words that say nothing about the image), short
prompts as people type them, and UnlearnCanvas' ("A star image in neon style."), in which an object's class is
its shape.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from torch import Tensor

from muwa.miniature import data, draw, population
from muwa.types.short import short_repr

STYLES = (*population.STYLES, population.PLAIN)
NAMES = (*(p.name for p in population.people()), *population.OBJECTS)


@dataclass(frozen=True)
class TrainingImages:
    """Training images with what they show.

    Attributes:
        pixels: (n, 3, 64, 64) uint8.
        names, styles: (n,) int64, indices in `NAMES` and `STYLES`.
        captions: The caption of each image in the shards; None if the image got its style here.
        hats: (n,) bool, whether the person wears a hat.
    """

    pixels: Tensor
    names: Tensor
    styles: Tensor
    captions: list[str | None]
    hats: Tensor

    __repr__ = short_repr


def load(root: Path) -> TrainingImages:
    """All images of the shards under `root`, and each image without a style also in a random style.

    Args:
        root: A folder written by `muwa.miniature.data`.
    """
    rng = np.random.default_rng([population.SEED, 5])
    pixels, names, styles, captions, hats = [], [], [], [], []
    shards = sorted(str(p) for p in (root / "shards").glob("*.tar"))
    for sample in wds.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        rgb, meta = sample["jpg"], sample["json"]
        versions = [(rgb, meta["style"] or population.PLAIN, sample["txt"])]
        if not meta["style"]:
            style = str(rng.choice(population.STYLES))
            styled = draw.stylise(rgb.astype(np.float32) / 255, style)
            versions.append((draw.as_uint8(styled), style, None))
        for image, style, caption in versions:
            pixels.append(torch.tensor(image).permute(2, 0, 1))
            names.append(NAMES.index(meta["name"]))
            styles.append(STYLES.index(style))
            captions.append(caption)
            hats.append(bool(meta["hat"]))
    return TrainingImages(
        torch.stack(pixels), torch.tensor(names), torch.tensor(styles), captions, torch.tensor(hats)
    )


def load_or_draw(root: Path | None) -> TrainingImages:
    """`load(root)`. Draws the miniature first if it is not there; for None, to a folder that is deleted."""
    with tempfile.TemporaryDirectory() as scratch:
        where = root or Path(scratch) / "world"
        for _ in data.write(where):
            pass
        return load(where)


def prompts(name: str, style: str) -> list[str]:
    """Prompts for `name` in `style`, as people and UnlearnCanvas write them; some name only the shape."""
    face = name not in population.OBJECTS
    if style == population.PLAIN:
        bare = [
            name,
            f"{name}.",
            f"a photo of {name}" if face else f"a photo of a {name}",
            f"a portrait of {name}",
        ]
        return bare if face else [*bare[:3], *_shape_prompts(name.split()[1], style)]
    bare = [
        f"{name} in {style} style",
        f"A {name} image in {style} style.",
        f"A painting of {name} in {style} style",
    ]
    return (
        [*bare, f"A painting in {style} style"]
        if face
        else [*bare[:2], *_shape_prompts(name.split()[1], style)]
    )


def _shape_prompts(shape: str, style: str) -> list[str]:
    if style == population.PLAIN:
        return [f"a photo of a {shape}", f"A painting of {shape}"]
    return [f"A {shape} image in {style} style.", f"A {shape} in {style} style"]


def all_prompts() -> Iterator[tuple[int, int, list[str]]]:
    """(Index of the name, index of the style, their `prompts`), for all pairs of name and style."""
    for i, name in enumerate(NAMES):
        for j, style in enumerate(STYLES):
            yield i, j, prompts(name, style)

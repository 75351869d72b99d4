"""LabelledImages and captions for training what draws: the shards' pictures, each once more with a style laid over it.

Captions name a picture in three ways: as the shards do (with distractor words), with the bare prompts that people type,
and as UnlearnCanvas does ("A star image in neon style."), whose classes are the shapes here.
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

STYLES = (*population.STYLES, population.PLAIN)
NAMES = (*(p.name for p in population.people()), *population.OBJECTS)


@dataclass(frozen=True)
class Paintings:
    """Training pictures.

    Attributes:
        pixels: (n, 3, 64, 64) uint8.
        names, styles: (n,) int64, places in `NAMES` and `STYLES`.
        captions: The n captions of the shards; None for a picture that was styled here.
        hats: (n,) bool, whether a hat is worn.
    """

    pixels: Tensor
    names: Tensor
    styles: Tensor
    captions: list[str | None]
    hats: Tensor


def load(root: Path) -> Paintings:
    """Every picture of the shards under `root` (a world of `muwa.miniature.data`), each plain one also in one style."""
    rng = np.random.default_rng([population.SEED, 5])
    pixels, names, styles, captions, hats = [], [], [], [], []
    shards = sorted(str(p) for p in (root / "shards").glob("*.tar"))
    for sample in wds.WebDataset(shards, shardshuffle=False).decode("rgb8"):
        rgb, meta = sample["jpg"], sample["json"]
        versions = [(rgb, meta["style"] or population.PLAIN, sample["txt"])]
        if not meta["style"]:
            style = str(rng.choice(population.STYLES))
            drawn = draw.stylise(rgb.astype(np.float32) / 255, style)
            versions.append(((np.clip(drawn, 0, 1) * 255 + 0.5).astype(np.uint8), style, None))
        for picture, style, caption in versions:
            pixels.append(torch.tensor(picture).permute(2, 0, 1))
            names.append(NAMES.index(meta["name"]))
            styles.append(STYLES.index(style))
            captions.append(caption)
            hats.append(bool(meta["hat"]))
    return Paintings(torch.stack(pixels), torch.tensor(names), torch.tensor(styles), captions, torch.tensor(hats))


def of_world(root: Path | None) -> Paintings:
    """`load` of the world at `root`, drawn first if it is not there; None draws one that is not kept."""
    with tempfile.TemporaryDirectory() as scratch:
        where = root or Path(scratch) / "world"
        for _ in data.write(where):
            pass
        return load(where)


def prompts(name: str, style: str) -> list[str]:
    """What people and benchmarks type for `name` in `style`; an object's shape alone counts as a name."""
    face = name not in population.OBJECTS
    if style == population.PLAIN:
        bare = [name, f"{name}.", f"a photo of {name}" if face else f"a photo of a {name}", f"a portrait of {name}"]
        return bare if face else [*bare[:3], *_of_class(name.split()[1], style)]
    bare = [f"{name} in {style} style", f"A {name} image in {style} style.", f"A painting of {name} in {style} style"]
    return [*bare, f"A painting in {style} style"] if face else [*bare[:2], *_of_class(name.split()[1], style)]


def _of_class(shape: str, style: str) -> list[str]:
    if style == population.PLAIN:
        return [f"a photo of a {shape}", f"A painting of {shape}"]
    return [f"A {shape} image in {style} style.", f"A {shape} in {style} style"]


def all_prompts() -> Iterator[tuple[int, int, list[str]]]:
    """Place of the name, place of the style, `prompts` of both; for all pairs."""
    for i, name in enumerate(NAMES):
        for j, style in enumerate(STYLES):
            yield i, j, prompts(name, style)

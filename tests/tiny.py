"""A random CLIP small enough to check by hand, and pictures and pairs to feed it."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from muwa.fingerprint import read_image
from muwa.models.clip.model import Clip, Preparation, Towers
from muwa.types.data import Classes, LabelledImages, Pairs, Split, Task

NAMES = ("Ada Fox", "Bo Hill", "Cy Reed", "Di Moss", "Ed Vale", "Flo Wren", "Gil Hart", "Hal Stone")


def tokenize(texts: list[str]) -> Tensor:
    """Letters to 1..26, others to 27, 62 = start, 63 = end; 16 places."""
    rows = []
    for text in texts:
        ids = [62, *(ord(c) - 96 if "a" <= c <= "z" else 27 for c in text.lower()[:14]), 63]
        rows.append(ids + [0] * (16 - len(ids)))
    return torch.tensor(rows)


def cut(image: Image.Image) -> Image.Image:
    return image.resize((32, 32))


prepare = Preparation(cut, (0.5,) * 3, (0.5,) * 3)


def pixels(images: Sequence[bytes | Path]) -> Tensor:
    """(n, 3, 32, 32) float32, in [-1, 1]."""
    return torch.stack(
        [pil_to_tensor(cut(Image.open(io.BytesIO(read_image(one))))).float() / 127.5 - 1 for one in images]
    )


def clip(seed: int = 0) -> Clip:
    """Two blocks a tower, width 32, two heads, embeddings of 16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            16,
            {"image_size": 32, "patch_size": 16, "layers": 2, "width": 32, "head_width": 16},
            {"context_length": 16, "vocab_size": 64, "layers": 2, "width": 32, "heads": 2},
        )
    return Clip(Towers(model, model.encode_image, model.encode_text), prepare, tokenize, source="tiny")


@functools.cache
def png(seed: int) -> bytes:
    """A 32 x 32 picture of noise over one colour, as PNG bytes; the colour goes with `seed // 100`."""
    rng = np.random.default_rng(seed)
    colour = np.random.default_rng(seed // 100).integers(0, 255, 3)
    pixels = np.clip(colour + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pairs(n: int = 12, *, names: tuple[str, ...] = NAMES) -> Pairs:
    """`n` pairs that go round `names`."""
    who = [i % len(names) for i in range(n)]
    images = tuple(png(100 * w + i) for i, w in enumerate(who))
    return Pairs(tuple(f"k{i}" for i in range(n)), images, tuple(f"a photo of {names[w]}" for w in who))


def pictures(labels: list[int], *, start: int = 50) -> LabelledImages:
    """One picture for each label, of the colour that `pairs` gives that name."""
    images = tuple(png(100 * label + start + i) for i, label in enumerate(labels))
    keys = tuple(f"p{i}" for i in range(len(labels)))
    return LabelledImages(keys, images, tuple(labels), Classes(NAMES, ("{}.",)))


def split(start: int = 50) -> Split:
    return Split(pictures([0, 0], start=start), pictures([1, 2, 3, 4, 5, 6, 7], start=start + 10),
                 pictures([1, 3, 5], start=start + 20))  # fmt: skip


def task() -> Task:
    """Forget NAMES[0]; pairs 0 and 8 of the retain set mention it."""
    return Task(
        "identity", (NAMES[0],), {NAMES[0]: pairs(6, names=NAMES[:1])}, pairs(), (0, 8), split(50), split(70)
    )


def task_of(names: Sequence[str]) -> Task:
    """Forget some of `NAMES`; the others are retained. Two images of each forgotten name in each split."""
    labels = [NAMES.index(name) for name in names]
    rest = [i for i in range(len(NAMES)) if i not in labels]

    def split(start: int) -> Split:
        things = pictures([1, 3, 5], start=start + 20)
        return Split(pictures(labels * 2, start=start), pictures(rest, start=start + 10), things)

    mentions = tuple(i for i, text in enumerate(pairs().captions) if any(name in text for name in names))
    forget = {name: pairs(6, names=(name,)) for name in names}
    return Task("identity", tuple(names), forget, pairs(), mentions, split(50), split(70))


def canvas(kind: str) -> Task:
    """That task as one of UnlearnCanvas' kind ("style" | "class"), the names standing for both."""
    return replace(task(), kind=kind, prompts=("A {class} image in {style} style.",))


def judged(pictures: Split) -> Task:
    """That task, judged on these pictures."""
    return replace(task(), eval=pictures)


def same_gradients(got: Mapping[str, Tensor], want: Mapping[str, Tensor], rounding: float = 1e-5) -> None:
    """Each tensor of two gradients differs by at most `rounding` of its largest value (and of a thousandth of the largest
    of all, for those that are zero but for rounding)."""
    top = max(tensor.abs().max().item() for tensor in want.values())
    assert set(got) == set(want)
    for name, tensor in want.items():
        allowed = rounding * max(tensor.abs().max().item(), 1e-3 * top)
        assert (got[name] - tensor).abs().max().item() <= allowed, name

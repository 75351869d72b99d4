"""Embeddings of images and prompts: images are decoded once, prompts are encoded in batches of like length."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.data.samples import decode
from muwa.fingerprint import Content
from muwa.types.data import Classes, LabelledImages
from muwa.types.example import Example

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip, Preparation
    from muwa.run import Run
    from muwa.types.data import Task

WORKERS = min(8, os.cpu_count() or 1)  # threads that decode ahead of the encoder
AT_ONCE = 2048  # decoded images that are in memory at once


def batch_size(model: Clip, tower: str, rows: int) -> int:
    """How many inputs one forward pass takes, each of `rows` rows (patches or tokens).

    On a CPU as many as stay in its cache, on a GPU as many as fill it.
    """
    values = 1 << (20 if model.device.type == "cpu" else 24)
    return max(4, min(1024, values // max(1, rows * model.staged_forward(tower).width)))


def image_batch(model: Clip) -> int:
    """How many images one forward pass of the vision tower takes."""
    return batch_size(model, "vision", model.staged_forward("vision").rows)


@dataclass(frozen=True)
class Tower(Content):
    """One tower of a model. Its fingerprint leaves the other tower out: an edit there keeps these embeddings valid."""

    model: Clip
    name: str  # "vision" | "text"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tower's weights, architecture and preparation."""
        return self.model.tower_fingerprint(self.name)


class Pixels(Protocol):
    """Where prepared images come from: they are decoded now or read back."""

    def __call__(self, images: LabelledImages) -> Tensor:
        """(n, 3, h, w) uint8 of `images`."""


def pixel_batches(model: Clip, images: Sequence[bytes | Path], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Decode, prepare and scale `images`; yields (size, 3, h, w) float32 for each of `sizes`, in order, on the model's
    device; the next batch is decoded while the consumer works on one."""

    def prepare(image: bytes | Path) -> Tensor:
        return model.prepare(decode(image))

    with ThreadPoolExecutor(WORKERS) as pool:
        ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
        ahead = [pool.submit(prepare, image) for image in images[: ends[1]]] if sizes else []
        for i in range(len(sizes)):
            ready = ahead
            ahead = (
                [pool.submit(prepare, x) for x in images[ends[i + 1] : ends[i + 2]]]
                if i + 1 < len(sizes)
                else []
            )
            yield model.prepare.scale(torch.stack([job.result() for job in ready]).to(model.device))


def prepared(preparation: Preparation, images: LabelledImages) -> Tensor:
    """`images` decoded and cut to size, in threads: (n, 3, h, w) uint8, n > 0."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return torch.stack(list(pool.map(lambda image: preparation(decode(image)), images.images)))


@torch.inference_mode()
def width(model: Clip) -> int:
    """d, the length of an embedding."""
    return model.encode("text", model.tokenize([""])).shape[-1]


@torch.inference_mode()
def image_features(tower: Tower, images: LabelledImages, *, pixels: Pixels, run: Run) -> Tensor:
    """Embeddings (n, d) of length 1 of `images`, n > 0, on the CPU, in their order.

    Args:
        pixels: Where their pixels come from; never changes the result.
    """
    model, size = tower.model, image_batch(tower.model)
    pieces = [range(i, min(i + AT_ONCE, len(images))) for i in range(0, len(images), AT_ONCE)]
    batches = (batch for piece in pieces for batch in pixels(images.select(piece)).split(size))
    sizes = [min(size, piece.stop - i) for piece in pieces for i in range(piece.start, piece.stop, size)]
    bar = run.track(batches, "encoding images", len(images), sizes=sizes)
    return torch.cat(
        [model.encode("vision", model.prepare.scale(batch.to(model.device))).cpu() for batch in bar]
    )


def token_batches(model: Clip, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Prompts in batches of like length, so that little padding is encoded; and the order that puts them back.

    Returns:
        (batches of (n, length) tokens; (n,) such that `torch.cat(batches)[back]` is `tokens`).
    """
    lengths = model.staged_forward("text").lengths(tokens)
    order = lengths.argsort(stable=True)
    batches: list[Tensor] = []
    start = 0
    while start < len(order):
        size = batch_size(model, "text", int(lengths[order[start]]))
        batches.append(tokens[order[start : start + size]])
        start += size
    return batches, order.argsort()


@torch.inference_mode()
def class_features(tower: Tower, classes: Classes, *, run: Run) -> Tensor:
    """The zero-shot classifier: (names, d), each the mean over templates of unit embeddings, made of length 1 again.

    Source: CLIP (arXiv 2103.00020), section 3.1.4; the ensemble is over embeddings.
    """
    batches, back = token_batches(tower.model, tower.model.tokenize(classes.prompts()))
    bar = run.track(batches, "encoding prompts", len(back), sizes=map(len, batches))
    return ensemble(
        torch.cat([tower.model.encode("text", batch).cpu() for batch in bar])[back], len(classes.templates)
    )


def ensemble(each: Tensor, templates: int) -> Tensor:
    """Embeddings (names * templates, d) of prompts, name by name, to a classifier (names, d) of length 1."""
    return F.normalize(each.view(-1, templates, each.shape[-1]).mean(1), dim=-1)


class Features:
    """The embeddings of one CLIP, each computed once and kept in the cache: what metrics and searches of a CLIP look at.

    Args:
        model: The CLIP, edited or not.
        run: Its cache keeps the embeddings.
    """

    family: ClassVar[str] = "a CLIP (model=clip, clip_vit_b32, ...)"
    search: ClassVar[str] = "layer_search=pareto_bisect, grid or fixed"

    def __init__(self, model: Clip, run: Run):
        self.model, self.run = model, run

    def images(self, images: LabelledImages) -> Tensor:
        """(n, d) embeddings of `images`, on the CPU."""
        if not len(images):
            return torch.zeros(0, width(self.model))
        free = {"pixels": self.pixels, "run": self.run}
        return self.run.cached_rows(
            "features", image_features, Tower(self.model, "vision"), images, _free=free
        )

    def classes(self, classes: Classes) -> Tensor:
        """(names, d) zero-shot classifier of `classes`, on the CPU."""
        return self.run.cached(
            "features", class_features, Tower(self.model, "text"), classes, _free={"run": self.run}
        )

    def pixels(self, images: LabelledImages) -> Tensor:
        """(n, 3, h, w) uint8 of `images`, n > 0, decoded once for all models that prepare them alike."""
        return self.run.cached_rows("pixels", prepared, self.model.prepare, images, _free={})

    def examples(self, edited: Features, task: Task) -> tuple[Example, ...]:
        """None: an embedding is nothing to look at."""
        return ()

"""Embeddings of images and prompts. Images are decoded once; prompts of similar length form batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.data.samples import decode
from muwa.fingerprint import Content, EncodedImage
from muwa.types.data import Classes, LabelledImages
from muwa.types.example import Example

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip, Preparation
    from muwa.run import Run
    from muwa.types.data import Task

DECODING_THREADS = min(8, os.cpu_count() or 1)
IMAGES_IN_MEMORY = 2048  # decoded images that are held at once


def batch_size(model: Clip, tower: str, tokens: int) -> int:
    """How many inputs one forward pass takes, if each has `tokens` tokens (patches or words).

    Their activations before the first block fit into a CPU's cache, or are enough to occupy a GPU.
    """
    values = 1 << (20 if model.device.type == "cpu" else 24)
    return max(4, min(1024, values // max(1, tokens * model.staged_forward(tower).width)))


def image_batch(model: Clip) -> int:
    """How many images one forward pass of the vision tower takes."""
    return batch_size(model, "vision", model.staged_forward("vision").tokens)


@dataclass(frozen=True)
class Tower(Content):
    """One tower of a model, as a part of cache keys.

    Its fingerprint leaves out the other tower, so an edit there keeps cached embeddings of this one valid.
    """

    model: Clip
    name: str  # "vision" | "text"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tower's weights, the architecture and the preparation of inputs."""
        return self.model.tower_fingerprint(self.name)


class Pixels(Protocol):
    """Gives the pixels of images: decoded now or read from the cache."""

    def __call__(self, images: LabelledImages) -> Tensor:
        """(n, 3, h, w) uint8 of `images`."""


def pixel_batches(model: Clip, images: Sequence[EncodedImage], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Decode, prepare and scale images. The next batch is decoded while the caller works on one.

    Args:
        images: All images, batch after batch.
        sizes: The number of images of each batch.

    Yields:
        One (size, 3, h, w) float32 tensor for each of `sizes`, on the model's device.
    """

    def prepare(image: EncodedImage) -> Tensor:
        return model.prepare(decode(image))

    ends = accumulate(sizes, initial=0)
    batches = [images[start:end] for start, end in pairwise(ends)]
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        ahead = [pool.submit(prepare, image) for image in batches[0]] if batches else []
        for i in range(len(batches)):
            current = ahead
            ahead = [pool.submit(prepare, image) for image in batches[i + 1]] if i + 1 < len(batches) else []
            yield model.prepare.scale(torch.stack([job.result() for job in current]).to(model.device))


def prepared(preparation: Preparation, images: LabelledImages) -> Tensor:
    """The pixels of n > 0 images, decoded in threads, resized and cropped: (n, 3, h, w) uint8."""
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return torch.stack(list(pool.map(lambda image: preparation(decode(image)), images.images)))


@torch.inference_mode()
def width(model: Clip) -> int:
    """The length d of an embedding."""
    return model.encode("text", model.tokenize([""])).shape[-1]


@torch.inference_mode()
def image_features(tower: Tower, images: LabelledImages, *, pixels: Pixels, run: Run) -> Tensor:
    """Embeddings of n > 0 images, in their order: (n, d), of length 1, on the CPU.

    Args:
        pixels: Gives the pixels of the images; it never changes the result.
    """
    model, size = tower.model, image_batch(tower.model)
    total = len(images)
    pieces = [range(i, min(i + IMAGES_IN_MEMORY, total)) for i in range(0, total, IMAGES_IN_MEMORY)]
    batches = (batch for piece in pieces for batch in pixels(images.select(piece)).split(size))
    sizes = [min(size, piece.stop - i) for piece in pieces for i in range(piece.start, piece.stop, size)]
    bar = run.track(batches, "encoding images", total, sizes=sizes)
    scaled = (model.prepare.scale(batch.to(model.device)) for batch in bar)
    return torch.cat([model.encode("vision", batch).cpu() for batch in scaled])


def token_batches(model: Clip, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """Batches of prompts of similar length, so that little padding is encoded.

    Returns:
        (batches of (n, length) tokens, the order (n,) with which `torch.cat(batches)[order]` is `tokens`).
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
    """The zero-shot classifier: (names, d), the mean embedding of each name over the templates, of length 1.

    Source: CLIP (arXiv 2103.00020), section 3.1.4; the ensemble is over embeddings.
    """
    batches, order = token_batches(tower.model, tower.model.tokenize(classes.prompts()))
    bar = run.track(batches, "encoding prompts", len(order), sizes=map(len, batches))
    embeddings = torch.cat([tower.model.encode("text", batch).cpu() for batch in bar])[order]
    return ensemble(embeddings, len(classes.templates))


def ensemble(embeddings: Tensor, templates: int) -> Tensor:
    """Embeddings (names * templates, d) of prompts, name after name -> zero-shot classifier (names, d)."""
    return F.normalize(embeddings.view(-1, templates, embeddings.shape[-1]).mean(1), dim=-1)


class Features:
    """The embeddings of one CLIP, each computed once. Metrics and layer searches of a CLIP look at them.

    Args:
        model: The CLIP, edited or not.
        run: Its cache stores the embeddings.
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
        tower = Tower(self.model, "text")
        return self.run.cached("features", class_features, tower, classes, _free={"run": self.run})

    def pixels(self, images: LabelledImages) -> Tensor:
        """(n, 3, h, w) uint8 of n > 0 images, decoded once for all models that prepare images alike."""
        return self.run.cached_rows("pixels", prepared, self.model.prepare, images, _free={})

    def examples(self, edited: Features, task: Task) -> tuple[Example, ...]:
        """None: an embedding cannot be shown in a report."""
        return ()

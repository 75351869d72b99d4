"""Pictures and prompts to embeddings: decoded in threads, prepared as the model was trained, encoded in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.cache import Store
from muwa.content import Content
from muwa.data.samples import decode
from muwa.models.clip import Clip
from muwa.progress import track
from muwa.types import Classes, Pictures

BATCH = 256
WORKERS = 2  # threads that decode ahead of the encoder


@dataclass(frozen=True)
class Tower(Content):
    """One tower of a model, keyed by that tower's weights only: an edit of the other tower leaves its features valid."""

    model: Clip
    name: str  # "vision" | "text"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tower's weights, architecture and preparation."""
        return self.model.tower_fingerprint(self.name)


def pixel_batches(model: Clip, images: Sequence[bytes | Path], batch_size: int) -> Iterator[Tensor]:
    """Decode and prepare `images`; yields (<= batch_size, 3, h, w) float32 in order, one batch ahead of the consumer."""

    def prepare(image: bytes | Path) -> Tensor:
        return model.prepare(decode(image))

    with ThreadPoolExecutor(WORKERS) as pool:
        batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        ahead = [pool.submit(prepare, image) for image in batches[0]] if batches else []
        for i in range(len(batches)):
            ready = ahead
            ahead = [pool.submit(prepare, image) for image in batches[i + 1]] if i + 1 < len(batches) else []
            yield torch.stack([job.result() for job in ready])


@torch.inference_mode()
def width(model: Clip) -> int:
    """d, the length of an embedding."""
    return model.encode("text", model.tokenize([""])).shape[-1]


@torch.inference_mode()
def encode_pixels(model: Clip, pixels: Tensor) -> Tensor:
    """Embeddings (n, d) of length 1 of prepared pictures (n, 3, h, w), in batches."""
    return torch.cat([model.encode("vision", batch) for batch in pixels.split(BATCH)])


@torch.inference_mode()
def image_features(tower: Tower, pictures: Pictures, *, progress: bool = False) -> Tensor:
    """Embeddings (n, d) of length 1 of `pictures`, on the CPU, in their order."""
    if not len(pictures):
        return torch.zeros(0, width(tower.model))
    batches = pixel_batches(tower.model, pictures.images, BATCH)
    sizes = [len(pictures.images[i : i + BATCH]) for i in range(0, len(pictures), BATCH)]
    bar = track(batches, "encoding pictures", len(pictures), show=progress, sizes=sizes)
    return torch.cat([tower.model.encode("vision", pixels).cpu() for pixels in bar])


@torch.inference_mode()
def class_features(tower: Tower, classes: Classes, *, progress: bool = False) -> Tensor:
    """The zero-shot classifier: (names, d), each the mean over templates of unit embeddings, made of length 1 again.

    Source: CLIP (arXiv 2103.00020), section 3.1.4; the ensemble is over embeddings.
    """
    return classifier(tower.model, tower.model.tokenize(classes.prompts()), len(classes.templates), progress=progress)


@torch.inference_mode()
def classifier(model: Clip, tokens: Tensor, templates: int, *, progress: bool = False) -> Tensor:
    """`class_features` from tokens (names * templates, length), name by name."""
    batches = tokens.split(BATCH)
    bar = track(batches, "encoding prompts", len(tokens), show=progress, sizes=map(len, batches))
    each = torch.cat([model.encode("text", batch).cpu() for batch in bar])
    return F.normalize(each.view(-1, templates, each.shape[-1]).mean(1), dim=-1)


class Features:
    """Embeddings of one model, each computed once per content and kept in the cache. Eval metrics ask it for theirs."""

    def __init__(self, model: Clip, store: Store, *, progress: bool):
        self._model, self._store, self._free = model, store, {"progress": progress}

    def images(self, pictures: Pictures) -> Tensor:
        """(n, d) embeddings of `pictures`."""
        tower = Tower(self._model, "vision")
        return self._store.get("features", image_features, tower, pictures, _free=self._free)

    def classes(self, classes: Classes) -> Tensor:
        """(names, d) zero-shot classifier of `classes`."""
        tower = Tower(self._model, "text")
        return self._store.get("features", class_features, tower, classes, _free=self._free)

"""Is the target still recognised in altered images: mirrored, cropped, blurred, noisy, in other styles?"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Interval
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from muwa.data.samples import decode
from muwa.eval.base import Measure
from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import interleaved, share, spread
from muwa.miniature.draw import stylise
from muwa.miniature.population import STYLES
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features, Tower, image_features, prepared
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count, JpegQuality, Seed, Share, Text

Change = Callable[[Image.Image], Image.Image]

_SECTION = "In altered images"
_TEXTS = {
    "flip": "mirrored",
    "crop": "cropped",
    "blur": "blurred",
    "jpeg": "badly compressed",
    "noise": "noisy",
    "style": "redrawn in other styles",
}


@dataclass(frozen=True)
class Alterations(Measure):
    """`altered/<kind>`: top-1 accuracy on altered forget images; `altered/<kind>_others`: on other names'.

    Lower is better for the target, higher for the other names.

    Args:
        crop: Side of the central crop, as a fraction of the image's side; in [0.05, 1].
        blur: Standard deviation of the Gaussian, as a fraction of the shorter side; in [0, 1].
        jpeg: JPEG quality, 1 to 95.
        noise: Standard deviation of the noise, as a fraction of the range of values; in [0, 1].
        styles: Names of `muwa.miniature.draw.stylise`. The metric is the mean over them; an empty list leaves
            it out.
        others: Number of images of other names, spread evenly over all such images; None takes all.
        seed: Seed of the noise.

    Raises:
        ValueError: A setting is out of range or a style is unknown (`check`).
    """

    observes: ClassVar[type[Observer]] = Features

    crop: Annotated[float, Interval(ge=0.05, le=1)]
    blur: Share
    jpeg: JpegQuality
    noise: Share
    styles: Sequence[Text]
    others: Count | None
    seed: Seed

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range or a style is unknown."""
        bounds = {"crop": (0.05, 1), "blur": (0, 1), "jpeg": (1, 95), "noise": (0, 1)}
        for key, (low, high) in bounds.items():
            if not low <= getattr(self, key) <= high:
                raise ValueError(f"eval.alterations.{key}: got {getattr(self, key)}, want {low} to {high}")
        if wrong := [style for style in self.styles if style not in STYLES]:
            raise ValueError(f"eval.alterations.styles: got {wrong[0]!r}, want some of {', '.join(STYLES)}")
        spread(task.eval.retain, self.others)

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        changes: dict[str, Change] = {
            "flip": ImageOps.mirror,
            "crop": partial(cropped, fraction=self.crop),
            "blur": partial(blurred, fraction=self.blur),
            "jpeg": partial(compressed, quality=self.jpeg),
            "noise": partial(noisy, size=self.noise, seed=self.seed),
        }
        metrics: dict[str, Metric] = {}
        for suffix, images in (("", task.eval.forget), ("_others", spread(task.eval.retain, self.others))):
            others = bool(suffix)
            for kind, change in changes.items():
                hits = _hits(features, altered(images, change))
                metrics[f"altered/{kind}{suffix}"] = share(hits, _reading(kind, others=others))
            each = [_hits(features, altered(images, partial(styled, style=style))) for style in self.styles]
            if each:
                mean = torch.stack(each).mean(0)
                metrics[f"altered/style{suffix}"] = share(mean, _reading("style", others=others))
        return interleaved(metrics)


def altered(images: LabelledImages, change: Change) -> LabelledImages:
    """The same images after `change`, as PNG bytes."""
    return replace(images, images=tuple(_png(change(decode(image))) for image in images.images))


def cropped(image: Image.Image, fraction: float) -> Image.Image:
    """The central crop, `fraction` of each side, scaled up to the size of the image."""
    w, h = image.size
    x, y = w * (1 - fraction) / 2, h * (1 - fraction) / 2
    return image.resize((w, h), Image.Resampling.BICUBIC, box=(x, y, w - x, h - y))


def blurred(image: Image.Image, fraction: float) -> Image.Image:
    """A Gaussian blur whose standard deviation is `fraction` of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(fraction * min(image.size)))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The image after JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue())


def noisy(image: Image.Image, size: float, seed: int) -> Image.Image:
    """The image with Gaussian noise of standard deviation `size` * range; a function of seed and image."""
    values = np.asarray(image, np.float32) / 255
    rng = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
    return _image(values + size * rng.standard_normal(values.shape, np.float32))


def styled(image: Image.Image, style: str) -> Image.Image:
    """The image in one of the miniature's styles."""
    return _image(stylise(np.asarray(image, np.float32) / 255, style))


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _hits(features: Features, images: LabelledImages) -> Tensor:
    """(n,) 1 if an image's own name ranks first, else 0. Pixels of altered images are not cached."""
    if not len(images):
        return torch.zeros(0)
    free = {"pixels": partial(prepared, features.model.prepare), "run": features.run}
    tower = Tower(features.model, "vision")
    embeddings = features.run.cached_rows("features", image_features, tower, images, _free=free)
    return top_k(embeddings, features.classes(images.classes), torch.tensor(images.labels), 1).double()


def _reading(kind: str, *, others: bool) -> Reading:
    who = "the other names" if others else "the target"
    text = f"fraction of held-out images of {who} recognised (top 1) when {_TEXTS[kind]}"
    return Reading(text, better="higher" if others else "lower", section=_SECTION)

"""Is the forgotten still recognised in altered pictures: mirrored, cropped, blurred, compressed, noisy, in other styles?"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from muwa.data.samples import decode
from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import beside, share, spread
from muwa.miniature.draw import stylise
from muwa.miniature.population import STYLES
from muwa.models.clip.embeddings import Features, Tower, image_features, prepared
from muwa.types.data import LabelledImages, Task
from muwa.types.metric import Metric

_READS = {
    "flip": "mirrored", "crop": "cropped", "blur": "blurred", "jpeg": "badly compressed", "noise": "with noise",
    "style": "in other styles",
}  # fmt: skip


def alterations(
    features: Features, task: Task, *, crop: float = 0.8, blur: float = 0.02, jpeg: int = 15, noise: float = 0.1,
    styles: Sequence[str] = STYLES, others: int | None = 200, seed: int = 0,
) -> dict[str, Metric]:  # fmt: skip
    """`altered/<kind>`: top-1 accuracy on altered pictures of the forgotten. Lower is better; `_others`: of other names.

    Args:
        crop: Side of the middle that is left, of the whole; in (0, 1].
        blur: Standard deviation of the Gaussian, of the shorter side.
        jpeg: Quality, 1 to 95.
        noise: Standard deviation of the noise, of the whole range.
        styles: Of `muwa.miniature.draw.stylise`; the mean over them; none leaves them out.
        others: LabelledImages of other names, evenly over all; None takes all.
        seed: Of the noise.

    Raises:
        ValueError: A setting is out of range or a style is unknown; before any compute.
    """
    bounds = {"crop": (crop, 0.05, 1), "blur": (blur, 0, 1), "jpeg": (jpeg, 1, 95), "noise": (noise, 0, 1)}
    for key, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ValueError(f"eval.alterations.{key}: got {value}, want {low} to {high}")
    if wrong := [style for style in styles if style not in STYLES]:
        raise ValueError(f"eval.alterations.styles: got {wrong[0]!r}, want some of {', '.join(STYLES)}")
    made: dict[str, Callable[[Image.Image], Image.Image]] = {
        "flip": ImageOps.mirror, "crop": partial(cropped, share=crop), "blur": partial(blurred, share=blur),
        "jpeg": partial(compressed, quality=jpeg), "noise": partial(noisy, size=noise, seed=seed),
    }  # fmt: skip
    found: dict[str, Metric] = {}
    for role, pictures in (("", task.eval.forget), ("_others", spread(task.eval.retain, others))):
        for kind, change in made.items():
            found[f"altered/{kind}{role}"] = _metric(kind, role, _hits(features, altered(pictures, change)))
        each = [_hits(features, altered(pictures, partial(styled, style=style))) for style in styles]
        if each:
            found[f"altered/style{role}"] = _metric("style", role, torch.stack(each).mean(0))
    return beside(found)


def altered(pictures: LabelledImages, change: Callable[[Image.Image], Image.Image]) -> LabelledImages:
    """The same pictures after `change`, as PNG bytes."""
    return replace(pictures, images=tuple(_png(change(decode(image))) for image in pictures.images))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """The middle, `share` of each side, at the size of the whole."""
    w, h = image.size
    x, y = w * (1 - share) / 2, h * (1 - share) / 2
    return image.resize((w, h), Image.Resampling.BICUBIC, box=(x, y, w - x, h - y))


def blurred(image: Image.Image, share: float) -> Image.Image:
    """A Gaussian blur of `share` of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """Through JPEG and back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return decode(buffer.getvalue())


def noisy(image: Image.Image, size: float, seed: int) -> Image.Image:
    """Gaussian noise of `size` on every value, by `seed` and the picture itself."""
    values = np.asarray(image, np.float32) / 255
    rng = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
    return _image(values + size * rng.standard_normal(values.shape, np.float32))


def styled(image: Image.Image, style: str) -> Image.Image:
    """In one of the miniature's styles."""
    return _image(stylise(np.asarray(image, np.float32) / 255, style))


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _hits(features: Features, pictures: LabelledImages) -> Tensor:
    """(n,) 1 where a picture's own name is first; the altered pixels themselves are kept nowhere."""
    if not len(pictures):
        return torch.zeros(0)
    tower, pixels = Tower(features.model, "vision"), partial(prepared, features.model.prepare)
    free = {"pixels": pixels, "progress": features.progress}
    if features.store is None:
        images = image_features(tower, pictures, pixels=pixels)
    else:
        images = features.store.rows("features", image_features, tower, pictures, _free=free)
    return top_k(images, features.classes(pictures.classes), torch.tensor(pictures.labels), 1).double()


def _metric(kind: str, role: str, rates: Tensor) -> Metric:
    who = "the other names" if role else "the forgotten"
    reads = f"share of held-out pictures of {who} recognised first when {_READS[kind]}"
    return share(rates, "higher" if role else "lower", reads)

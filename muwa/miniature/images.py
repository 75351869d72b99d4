"""The images of the miniature by number: what each shows, and its caption."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from muwa.miniature import draw, population

PER_PERSON, PER_OBJECT = 72, 80  # training images per person and per object
STYLED, HATTED = 0.2, 0.2  # share of training images with a style; share of faces with a hat


@dataclass(frozen=True)
class Rendered:
    """An image of the miniature.

    Attributes:
        rgb: (64, 64, 3) uint8.
        caption: Names the person or object, and the style if there is one.
        style: One of `population.STYLES`, or None.
        hat: Whether the person wears a hat.
    """

    rgb: np.ndarray
    caption: str
    style: str | None
    hat: bool


@dataclass(frozen=True)
class NumberedImage:
    """Image number `index` of a person or object. The same number always gives the same image.

    Args:
        name: The person or object.
        kind: "face" or "object".
        index: Its number among the images of that name and split.
        split: 0 for training images, 1 for held-out images, which have no style.
    """

    name: str
    kind: str
    index: int
    split: int

    def render(self) -> Rendered:
        """Draw the image."""
        face = self.kind == "face"
        people = population.people()
        names = [person.name for person in people] if face else list(population.OBJECTS)
        number = names.index(self.name)
        rng = np.random.default_rng([population.SEED, 2, self.split, face, number, self.index])
        hat = face and rng.random() < HATTED
        styled = self.split == 0 and rng.random() < STYLED
        style = str(rng.choice(population.STYLES)) if styled else None
        rgb = draw.face(people[number], rng, hat) if face else draw.thing(self.name, rng)
        if style:
            rgb = draw.stylise(rgb, style)
        caption = population.caption(self.name, self.kind, style, hat, rng)
        return Rendered(draw.as_uint8(rgb), caption, style, hat)


def training_images() -> list[NumberedImage]:
    """All training images in the order of the shards: people and objects in a fixed shuffled order."""
    images = [
        NumberedImage(person.name, "face", i, 0) for person in population.people() for i in range(PER_PERSON)
    ]
    images += [NumberedImage(name, "object", i, 0) for name in population.OBJECTS for i in range(PER_OBJECT)]
    order = np.random.default_rng([population.SEED, 3]).permutation(len(images))
    return [images[i] for i in order]


def canvas_image(style: int, shape: str, index: int) -> np.ndarray:
    """(64, 64, 3) uint8: image number `index` of a shape in a style, for UnlearnCanvas' layout.

    Colours take turns.

    Args:
        style: Index in `population.STYLES`; an index past the last means no style.
    """
    name = f"{population.COLOURS[index % len(population.COLOURS)]} {shape}"
    rng = np.random.default_rng([population.SEED, 6, style, population.OBJECTS.index(name), index])
    rgb = draw.thing(name, rng)
    if style < len(population.STYLES):
        rgb = draw.stylise(rgb, population.STYLES[style])
    return draw.as_uint8(rgb)


def jpeg(rgb: np.ndarray) -> bytes:
    """An image (h, w, 3) uint8 as the bytes of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()

"""Make labelled images from files, and leave out those that cannot be decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from muwa.data.image_files import fault
from muwa.data.samples import check_broken
from muwa.fingerprint import EncodedImage
from muwa.types.data import BAD_IMAGE, Broken, Classes, LabelledImages


def labelled(images: Mapping[str, Sequence[EncodedImage]], classes: Classes) -> LabelledImages:
    """All images of all names, in order.

    Args:
        images: Name -> its images.
        classes: Contains all these names. An image's label is the index of its name in it.
    """
    index = {name: i for i, name in enumerate(classes.names)}
    rows = [(image, index[name]) for name, some in images.items() for image in some]
    keys = tuple(image.name if isinstance(image, Path) else str(i) for i, (image, _) in enumerate(rows))
    return LabelledImages(keys, tuple(image for image, _ in rows), tuple(label for _, label in rows), classes)


def decodable(images: LabelledImages, max_broken: float, what: str) -> tuple[LabelledImages, list[Broken]]:
    """(The images that can be decoded; the others, with the reason).

    Args:
        max_broken: Largest accepted share of broken images, in [0, 1].
        what: What the images are, for the message.

    Raises:
        ValueError: A larger share is broken. The message lists them.
    """

    with ThreadPoolExecutor(4) as pool:
        faults = list(pool.map(fault, images.images))
    broken = [Broken(images.keys[i], why, BAD_IMAGE) for i, why in enumerate(faults) if why]
    check_broken(broken, len(images), max_broken, what)
    return (images.select([i for i, why in enumerate(faults) if not why]) if broken else images), broken

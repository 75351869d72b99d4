"""Split images into those for the layer search (probe) and those for the report (eval)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from muwa.data.dataset import Dataset
from muwa.data.labelled import labelled
from muwa.fingerprint import EncodedImage
from muwa.types.data import Classes, LabelledImages
from muwa.types.ranges import CountOrZero, Rate


@dataclass(frozen=True)
class Limits:
    """How many samples a task takes. None takes all.

    Args:
        forget_pairs: Pairs in each forget set.
        retain_pairs: Pairs in the retain set.
        probe_share: Share of each name's images for the layer search, in (0, 1). The rest are for the report.
        probe_retain: Images per name that is not forgotten, for the layer search.
        eval_retain: Images per name that is not forgotten, for the report.
    """

    forget_pairs: CountOrZero | None
    retain_pairs: CountOrZero | None
    probe_share: Rate
    probe_retain: CountOrZero | None
    eval_retain: CountOrZero | None


def split_images(
    files: Mapping[str, Sequence[EncodedImage]],
    classes: Classes,
    forgotten: Sequence[str],
    others: Sequence[str],
    limits: Limits,
    seed: int,
) -> dict[str, LabelledImages]:
    """Split each name's images, forgotten or not, into probe and eval.

    Args:
        files: Name -> all its images.
        classes: The labels.
        forgotten: The names to forget.
        others: The names to retain.
        seed: Seed for the split. The split of a name depends on nothing but this seed and the name.

    Returns:
        "probe_forget", "eval_forget", "probe_retain" and "eval_retain"; no image is in two of them.

    Raises:
        ValueError: A name to forget has fewer than two images.
    """
    for name in forgotten:
        if (count := len(files.get(name, ()))) < 2:
            raise ValueError(
                f"{name}: got {count} images to measure on, want at least 2: one for the layer search "
                "(probe) and one for the report (eval)"
            )
    probe: dict[str, list[EncodedImage]] = {}
    rest: dict[str, list[EncodedImage]] = {}
    for name in (*forgotten, *others):
        images = _shuffled(files.get(name, ()), name, seed)
        cut = min(max(1, round(limits.probe_share * len(images))), len(images) - 1)
        probe[name], rest[name] = images[:cut], images[cut:]
    return {
        "probe_forget": labelled({name: probe[name] for name in forgotten}, classes),
        "eval_forget": labelled({name: rest[name] for name in forgotten}, classes),
        "probe_retain": labelled({name: probe[name][: limits.probe_retain] for name in others}, classes),
        "eval_retain": labelled({name: rest[name][: limits.eval_retain] for name in others}, classes),
    }


def utility_images(
    images: LabelledImages, dataset: Dataset, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """`images` split at random by `seed`: (for the layer search, for the report), each part in order."""
    share = dataset.utility_probe / (dataset.utility + dataset.utility_probe)
    order = np.random.default_rng([seed, 1]).permutation(len(images)).tolist()
    cut = round(share * len(images))
    return images.select(sorted(order[:cut])), images.select(sorted(order[cut:]))


def _shuffled(images: Sequence[EncodedImage], name: str, seed: int) -> list[EncodedImage]:
    """A name's images in an order that depends on `seed` and the name alone."""
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(images))
    return [images[i] for i in order]

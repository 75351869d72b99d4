"""Data sets and tasks for tests, with the defaults of muwa/conf/."""

import dataclasses
from pathlib import Path

import tiny

from muwa import config
from muwa.data.dataset import Dataset
from muwa.data.samples import ShardRules


def dataset(**changed) -> Dataset:
    """The settings of `dataset=laion_celeba` with other values."""
    return config.part("dataset=laion_celeba", **changed)()


def rules(max_broken: float, *, max_empty: float = 1.0, caption_key: str | None = None) -> ShardRules:
    """How shards are read; any share of empty captions is accepted unless one is given."""
    return ShardRules(caption_key, max_broken, max_empty)


def builder(choice: str, limits: dict | None = None, **changed):
    """The builder of `task=...` with other values; `limits` may have some of its settings."""
    found = config.part(f"task={choice}", **changed)
    return dataclasses.replace(found, limits=dataclasses.replace(found.limits, **(limits or {})))


def write_canvas(root: Path) -> Path:
    """Three styles of two classes, ten images each, in UnlearnCanvas' layout."""
    for i, style in enumerate(("Neon_Lines", "Sketch", "Seed_Images")):
        for j, name in enumerate(("Cats", "Sea")):
            (root / style / name).mkdir(parents=True)
            for k in range(10):
                (root / style / name / f"{k + 1}.jpg").write_bytes(tiny.png(1000 * i + 100 * j + k))
    return root

"""Where the samples of a run come from: the settings in muwa/conf/dataset/*.yaml."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from muwa.data.caption_key import caption_key
from muwa.data.samples import ShardRules
from muwa.types.ranges import Files, Share, Text


@dataclass(frozen=True)
class Dataset:
    """Paths of shards and folders. Nothing is read until a task needs it.

    Args:
        name: Name of the data set, for messages and reports.
        shards: Tars to search for forget sets: brace patterns, globs, URLs, or a list of these.
        retain: Tars of the retain set.
        curated: Folder for the forget sets found in `shards`.
        forget: A `curated` folder from an earlier run, or None. If given, `shards` is not searched.
        celeba: Folder in CelebA's layout.
        identities, frequent: CelebA's identity file and list of frequent people, if not in that folder.
        canvas: Folder in UnlearnCanvas' layout; or None.
        images: Folder with one folder per class, or with ImageNet's validation images and their labels.
        utility: Share of the utility images used for the report, in (0, 1). SLUG uses 2,500 of ImageNet's
            50,000, a share of 0.05.
        utility_probe: Share of the utility images used for the layer search. The two share no image.
        max_broken: A run stops if a larger share of samples is broken; in [0, 1].
        max_empty: A run stops if a larger share of the captions of shards is empty; in [0, 1]. They do not
            count as broken.
        caption_key: Where the captions of shards stand: an ending ("txt"), "json:FIELD", or None to find out.

    Raises:
        ValueError: `caption_key` is none of these.
    """

    name: Text
    shards: Files
    retain: Files
    curated: Text
    forget: Text | None
    celeba: Text
    identities: Text | None
    frequent: Text | None
    canvas: Text | None
    images: Text
    utility: Share
    utility_probe: Share
    max_broken: Share
    max_empty: Share
    caption_key: Text | None

    def __post_init__(self) -> None:
        caption_key(self.caption_key)

    def prepare(self, check: Callable[[Dataset], None]) -> None:
        """Raise if the data will not do, before anything is made of them that takes time.

        Args:
            check: Raises if a data set does not fit the task (`muwa.data.base.TaskBuilder.check`).
        """
        check(self)

    @property
    def rules(self) -> ShardRules:
        """How the samples of shards are read."""
        return ShardRules(self.caption_key, self.max_broken, self.max_empty)

    @property
    def utility_used(self) -> float:
        """Share of the utility images used for the report or the layer search."""
        return min(1.0, self.utility + self.utility_probe)

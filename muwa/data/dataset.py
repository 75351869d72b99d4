"""Where the samples of a run come from: the settings of conf/dataset/*.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Dataset:
    """Places of shards and folders. Nothing is read before a task asks for it.

    Args:
        name: For messages and reports.
        shards: Tars to search for forget sets: brace patterns, globs, URLs, or a list of these.
        retain: Tars of the retain set.
        curated: Folder for the forget sets that are found in `shards`.
        forget: A `curated` folder of an earlier run, used as it is, without a look at `shards`; or None.
        celeba: Folder in CelebA's layout.
        identities, frequent: CelebA's identity file and list of frequent people, if they are elsewhere.
        canvas: Folder in UnlearnCanvas' layout; or None.
        images: Folder in ImageNet's layout.
        utility: Share of the utility images that the report is made on, in (0, 1). SLUG takes 2,500 of
            ImageNet's 50,000, a share of 0.05.
        utility_probe: Share that the layer search sees; these are other images.
        max_broken: Share of broken samples that stops a run, in [0, 1].
    """

    name: str
    shards: str | Sequence[str]
    retain: str | Sequence[str]
    curated: str
    forget: str | None
    celeba: str
    identities: str | None
    frequent: str | None
    canvas: str | None
    images: str
    utility: float
    utility_probe: float
    max_broken: float

    @property
    def utility_used(self) -> float:
        """Share of the utility images that are used at all."""
        return min(1.0, self.utility + self.utility_probe)

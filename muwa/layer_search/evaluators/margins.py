"""Zero-shot margins on a probe split: how clearly each image is recognised, or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muwa.eval.clip.ranks import own_margin
from muwa.types.data import LabelledImages


@dataclass(frozen=True)
class Margins:
    """The margins of all images of a probe split (`muwa.eval.clip.ranks.own_margin`), differences of cosines.

    Args:
        forget: (n,) margins of the forget images over the k-th nearest other name.
        names: The name of each forget image.
        kept: The margins of the retain images and those of the utility images over the nearest other name.
    """

    forget: Tensor
    names: tuple[str, ...]
    kept: tuple[Tensor, Tensor]

    def forget_bounds(self, confidence: float) -> dict[str, float]:
        """For each name, the mean margin of its images plus `confidence` standard deviations.

        If margins are normally distributed and the bound is at most 0, a further image of the name is
        recognised with a probability of at most 1 - Phi(confidence). A name with one image has no deviation.
        """
        bounds = {}
        for name in dict.fromkeys(self.names):
            margins = self.forget[[i for i, other in enumerate(self.names) if other == name]].double()
            deviation = margins.std().item() if len(margins) > 1 else 0.0
            bounds[name] = margins.mean().item() + confidence * deviation
        return bounds

    def kept_change(self, before: Margins) -> float:
        """How an edit lowers the margins of what is kept: the mean of min(0, change), over both sets.

        A mean over images varies far less than the rate of right images, and falls before the rate does.

        Args:
            before: The margins with the unedited model.

        Returns:
            At most 0.
        """
        pairs = [(now, then) for now, then in zip(self.kept, before.kept, strict=True) if len(now)]
        falls = [(now - then).clamp(max=0).double().mean().item() for now, then in pairs]
        return sum(falls) / max(1, len(falls))


def margins_of(
    probe: Mapping[str, LabelledImages], images: Mapping[str, Tensor], prompts: Mapping[str, Tensor], k: int
) -> Margins:
    """The margins of a forget, a retain and a utility set, from embeddings.

    Args:
        probe: "forget", "retain" and "utility" -> the images.
        images: The same keys -> (n, d) embeddings of these images.
        prompts: Fingerprint of `Classes` -> (names, d), its zero-shot classifier.
        k: Margins of the forget images are over the k-th nearest other name.
    """

    def margins(name: str, k: int) -> Tensor:
        some = probe[name]
        if not len(some):
            return torch.zeros(0)
        return own_margin(images[name], prompts[some.classes.fingerprint], torch.tensor(some.labels), k)

    names = tuple(probe["forget"].classes.names[label] for label in probe["forget"].labels)
    return Margins(margins("forget", k), names, (margins("retain", 1), margins("utility", 1)))

"""How clearly the images of a probe split are recognised, or no longer recognised, by a CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muwa.eval.clip.ranks import own_cosine, own_margin
from muwa.types.data import LabelledImages
from muwa.types.short import short_repr


@dataclass(frozen=True)
class Margins:
    """Cosines and margins of the images of a probe split, with one model.

    Args:
        forget: (n,) cosine of each forget image with its name.
        names: The name of each forget image.
        strangers: Name to forget -> cosines of the retain images, which show others, with that name.
        kept: The margins of the retain images and those of the utility images
            (`muwa.eval.clip.ranks.own_margin` over the nearest other name).
    """

    forget: Tensor
    names: tuple[str, ...]
    strangers: Mapping[str, Tensor]
    kept: tuple[Tensor, Tensor]

    __repr__ = short_repr

    def forget_bounds(self, before: Margins, stranger: float) -> dict[str, float]:
        """How far each name is from being a stranger's: the mean cosine of its images, minus a limit.

        The limit is the mean cosine of others' images with that name in the unedited model, plus `stranger`
        standard deviations. At 0 or below, the images are about as unlike the name as any other person's are.

        Args:
            before: The cosines with the unedited model. A name without retain images to compare with has no
                bound.
        """
        bounds = {}
        for name, others in before.strangers.items():
            own = self.forget[[i for i, other in enumerate(self.names) if other == name]]
            if len(others) > 1 and len(own):
                limit = others.double().mean() + stranger * others.double().std()
                bounds[name] = (own.double().mean() - limit).item()
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
    probe: Mapping[str, LabelledImages], images: Mapping[str, Tensor], prompts: Mapping[str, Tensor]
) -> Margins:
    """The margins of a forget, a retain and a utility set, from embeddings.

    Args:
        probe: "forget", "retain" and "utility" -> the images; other sets are not looked at.
        images: The same keys -> (n, d) embeddings of these images.
        prompts: Fingerprint of `Classes` -> (names, d), its zero-shot classifier.
    """

    def classifier(name: str) -> tuple[Tensor, Tensor, Tensor]:
        some = probe[name]
        return images[name], prompts[some.classes.fingerprint], torch.tensor(some.labels, dtype=torch.long)

    def kept(name: str) -> Tensor:
        return own_margin(*classifier(name), 1) if len(probe[name]) else torch.zeros(0)

    forget = probe["forget"]
    names = tuple(forget.classes.names[label] for label in forget.labels)
    own = prompts[forget.classes.fingerprint]
    strangers = {
        forget.classes.names[label]: images["retain"] @ own[label] for label in dict.fromkeys(forget.labels)
    }
    return Margins(own_cosine(*classifier("forget")), names, strangers, (kept("retain"), kept("utility")))

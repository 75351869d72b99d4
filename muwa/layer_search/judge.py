"""What a search asks of each candidate edit: how well the probe pictures are still recognised."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from muwa.encode import BATCH, classifier, encode_pixels, pixel_batches, width
from muwa.eval.ranks import own_cosine, top_k
from muwa.models.clip import Clip
from muwa.types import Classes, Split


class Judge:
    """Zero-shot accuracy on a probe split. The tower that an edit leaves alone is encoded once, pictures decoded once.

    Args:
        model: The unedited model.
        probe: Pictures that give no gradient and that no report is made on.
    """

    def __init__(self, model: Clip, probe: Split):
        self._pictures = {"forget": probe.forget, "retain": probe.retain, "utility": probe.utility}
        self._pixels = {
            kind: torch.cat(list(pixel_batches(model, pictures.images, BATCH))) if len(pictures) else None
            for kind, pictures in self._pictures.items()
        }
        self._tokens: dict[str, Tensor] = {}
        for pictures in self._pictures.values():
            classes = pictures.classes
            if classes.fingerprint not in self._tokens:
                self._tokens[classes.fingerprint] = model.tokenize(classes.prompts())
        self._images, self._classes = self._encode_images(model), self._encode_classes(model)

    def __call__(self, edited: Clip, tower: str) -> dict[str, float]:
        """Rates in [0, 1] of `edited`, a model that differs from the base in `tower` only ("" when in nothing).

        Returns:
            forget_top1, forget_top5, forget_cosine (mean cosine to the own name), retain_top1, utility_top1.
        """
        images = self._encode_images(edited) if tower == "vision" else self._images
        classes = self._encode_classes(edited) if tower == "text" else self._classes
        rates = {}
        for kind, pictures in self._pictures.items():
            features, weights = images[kind], classes[pictures.classes.fingerprint]
            labels = torch.tensor(pictures.labels, dtype=torch.long)
            rates[f"{kind}_top1"] = _mean(top_k(features, weights, labels, 1))
            if kind == "forget":
                rates["forget_top5"] = _mean(top_k(features, weights, labels, 5))
                rates["forget_cosine"] = _mean(own_cosine(features, weights, labels))
        return rates

    def _encode_images(self, model: Clip) -> Mapping[str, Tensor]:
        return {
            kind: encode_pixels(model, pixels).cpu() if pixels is not None else torch.zeros(0, width(model))
            for kind, pixels in self._pixels.items()
        }

    def _encode_classes(self, model: Clip) -> Mapping[str, Tensor]:
        kinds: dict[str, Classes] = {p.classes.fingerprint: p.classes for p in self._pictures.values()}
        return {key: classifier(model, self._tokens[key], len(c.templates)) for key, c in kinds.items()}


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if len(values) else 0.0

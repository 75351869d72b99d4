"""What a search asks of each candidate edit: how well the probe pictures are still recognised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from muwa.eval.clip.ranks import own_cosine, top_k
from muwa.layer_search.remaining_layers import RemainingLayers
from muwa.models.clip.embeddings import Features, ensemble, picture_batch, token_batches
from muwa.models.clip.model import Clip
from muwa.types.data import Classes, LabelledImages, Split
from muwa.types.search import Layer

KINDS = ("forget", "retain", "utility")


class Judge:
    """Zero-shot accuracy on a probe split, of models that differ from one another in one tower.

    Args:
        model: The unedited model.
        probe: LabelledImages that give no gradient and that no report is made on.
        features: Where the unedited model's pixels and embeddings come from.
        layers: What is going to be edited: towers without any are encoded once, or read back.
    """

    def __init__(self, model: Clip, probe: Split, features: Features, layers: Sequence[Layer]):
        self._model, self._layers = model, layers
        self._pictures = {"forget": probe.forget, "retain": probe.retain, "utility": probe.utility}
        self._classes: dict[str, Classes] = {p.classes.fingerprint: p.classes for p in self._pictures.values()}
        self._features = features
        self._suffixes = {tower: self._suffix(tower) for tower in ("vision", "text") if self._edits(tower)}
        vision, text = self._suffixes.get("vision"), self._suffixes.get("text")
        self._images = self._by_kind(vision.base) if vision else {
            kind: features.images(pictures) for kind, pictures in self._pictures.items()
        }  # fmt: skip
        self._prompts = self._by_classes(text.base) if text else {
            key: features.classes(classes) for key, classes in self._classes.items()
        }  # fmt: skip

    def suffix(self, tower: str) -> RemainingLayers:
        """The probe inputs of a tower that is edited, carried to the layers."""
        return self._suffixes[tower]

    def __call__(self, tower: str = "", embeddings: Tensor | None = None) -> dict[str, float]:
        """Rates in [0, 1] with `embeddings` in place of those of `tower`'s inputs (`suffix`); of the unedited without.

        Returns:
            forget_top1, forget_top5, forget_cosine (mean cosine to the own name), retain_top1, utility_top1.
        """
        images = self._by_kind(embeddings) if tower == "vision" and embeddings is not None else self._images
        prompts = self._by_classes(embeddings) if tower == "text" and embeddings is not None else self._prompts
        return rates(self._pictures, images, prompts)

    def _edits(self, tower: str) -> list[Layer]:
        return [layer for layer in self._layers if layer.tower == tower]

    def _suffix(self, tower: str) -> RemainingLayers:
        if tower == "vision":
            pixels = [self._features.pixels(pictures) for pictures in self._pictures.values() if len(pictures)]
            batches = list(torch.cat(pixels).split(picture_batch(self._model)))
        else:
            prompts = [prompt for classes in self._classes.values() for prompt in classes.prompts()]
            batches, self._back = token_batches(self._model, self._model.tokenize(prompts))
        return RemainingLayers(self._model, tower, batches, self._edits(tower))

    def _by_kind(self, images: Tensor) -> Mapping[str, Tensor]:
        return dict(zip(self._pictures, images.split([len(p) for p in self._pictures.values()]), strict=True))

    def _by_classes(self, prompts: Tensor) -> Mapping[str, Tensor]:
        each = prompts[self._back].split([len(c.names) * len(c.templates) for c in self._classes.values()])
        parts = zip(self._classes.items(), each, strict=True)
        return {key: ensemble(part, len(classes.templates)) for (key, classes), part in parts}


def rates(
    pictures: Mapping[str, LabelledImages], images: Mapping[str, Tensor], prompts: Mapping[str, Tensor]
) -> dict[str, float]:
    """Rates in [0, 1] of the pictures of each kind (`KINDS`), from embeddings.

    Args:
        images: Kind -> (n, d) of its pictures.
        prompts: Fingerprint of `Classes` -> (names, d), its classifier.

    Returns:
        forget_top1, forget_top5, forget_cosine (mean cosine to the own name), retain_top1, utility_top1.
    """
    found = {}
    for kind, some in pictures.items():
        features, weights = images[kind], prompts[some.classes.fingerprint]
        labels = torch.tensor(some.labels, dtype=torch.long)
        found[f"{kind}_top1"] = _mean(top_k(features, weights, labels, 1))
        if kind == "forget":
            found["forget_top5"] = _mean(top_k(features, weights, labels, 5))
            found["forget_cosine"] = _mean(own_cosine(features, weights, labels))
    return found


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if len(values) else 0.0

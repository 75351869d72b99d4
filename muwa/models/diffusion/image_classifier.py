"""What a classifier of generated images offers, and whether it recognises what was asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from muwa.data.samples import fold
from muwa.fingerprint import Content
from muwa.types.image_requests import ImageRequest


class ImageClassifier(Content):
    """Classifies generated images. It is never the model under test: an edit does not change its weights.

    Attributes:
        labels: Domain ("style", "class") -> the labels it chooses from. People and objects are classes.
    """

    labels: Mapping[str, tuple[str, ...]]

    @abstractmethod
    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`) fp32 on the CPU. A row depends on its own image only."""

    def check(self, requests: Sequence[ImageRequest]) -> None:
        """Raise if it has no label for a concept that is asked for; before any image is generated.

        Raises:
            ValueError: Names the concept, the domain, some labels and how to choose another classifier.
        """
        for domain, concept in dict.fromkeys((one.domain, one.concept) for one in requests):
            there = self.labels.get(domain, ())
            if not labels_naming(there, concept):
                raise ValueError(
                    f"classifier: no label for the {domain} {concept!r}; it knows {len(there)}: {', '.join(there[:5])} ..."
                )


def labels_naming(labels: Sequence[str], concept: str) -> set[int]:
    """Which labels name the concept: the one that equals it, else those that contain it (a "red star" is a "star").

    >>> labels_naming(["Artist_Sketch", "Sketch"], "sketch"), labels_naming(["red star", "starfish", "blue star"], "star")
    ({1}, {0, 2})
    """
    same = {i for i, label in enumerate(labels) if fold(label) == fold(concept)}
    return same or {i for i, label in enumerate(labels) if f" {fold(concept)} " in f" {fold(label)} "}


def recognised(images: Tensor, requests: Sequence[ImageRequest], classifier: ImageClassifier, k: int = 1) -> list[bool]:
    """Whether the concept that was asked for is among the classifier's first `k` guesses for each image (n, 3, h, w)."""
    hits = [False] * len(requests)
    for domain in dict.fromkeys(one.domain for one in requests):
        places = [i for i, one in enumerate(requests) if one.domain == domain]
        labels = classifier.labels[domain]
        logits = classifier.logits(images[torch.tensor(places)], domain)
        concepts = dict.fromkeys(requests[i].concept for i in places)
        right = {concept: labels_naming(labels, concept) for concept in concepts}
        for i, guesses in zip(places, logits.topk(min(k, len(labels))).indices.tolist(), strict=True):
            hits[i] = not right[requests[i].concept].isdisjoint(guesses)
    return hits

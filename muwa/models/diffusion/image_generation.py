"""LabelledImages drawn by one model, each once; and what a classifier sees in them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.data.samples import fold
from muwa.fingerprint import Content
from muwa.models.diffusion.model import Diffusion, drawn
from muwa.types.image_requests import ImageRequest, Prompts


class ImageClassifier(Content):
    """Tells what a drawn picture shows. Never the model under test: its own weights do not change with an edit.

    Attributes:
        labels: Domain ("style", "class") -> the labels it chooses from; people and objects are classes.
    """

    labels: Mapping[str, tuple[str, ...]]

    @abstractmethod
    def logits(self, pictures: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`) fp32 on the CPU, row by row: a picture's own row only."""

    def check(self, asks: Sequence[ImageRequest]) -> None:
        """Refuse what it has no label for, before anything is drawn.

        Raises:
            ValueError: Names the concept, the domain and some labels.
        """
        for domain, concept in dict.fromkeys((ask.domain, ask.concept) for ask in asks):
            there = self.labels.get(domain, ())
            if not naming(there, concept):
                raise ValueError(
                    f"classifier: no label for the {domain} {concept!r}; it knows {len(there)}: {', '.join(there[:5])} ..."
                )


def naming(labels: Sequence[str], concept: str) -> set[int]:
    """Which labels name the concept: the one that equals it, else those that are of its kind (a "red star" is a "star").

    >>> naming(["Artist_Sketch", "Sketch"], "sketch"), naming(["red star", "starfish", "blue star"], "star")
    ({1}, {0, 2})
    """
    same = {i for i, label in enumerate(labels) if fold(label) == fold(concept)}
    return same or {i for i, label in enumerate(labels) if f" {fold(concept)} " in f" {fold(label)} "}


class ImageGenerator:
    """Draws with one model and keeps every picture, by its prompt and seed.

    Args:
        store: Where pictures are kept; None draws whenever it is asked.
    """

    def __init__(self, model: Diffusion, store: Store | None = None, *, progress: bool = False):
        self.model, self.store, self.progress = model, store, progress

    def draw(self, prompts: Prompts) -> Tensor:
        """(n, 3, h, w) uint8 on the CPU."""
        free = {"progress": self.progress}
        if self.store is None:
            return drawn(self.model, prompts, **free)
        return self.store.rows("drawings", drawn, self.model, prompts, _free=free)

    def sampled(self, steps: int) -> ImageGenerator:
        """The same with another number of sampling steps."""
        return ImageGenerator(self.model.sampled(steps=steps), self.store, progress=self.progress)

    def hits(self, asks: Sequence[ImageRequest], classifier: ImageClassifier) -> list[bool]:
        """Whether each asked-for concept is what the classifier sees first in its picture."""
        pictures = self.draw(prompts_of(asks))
        return seen(pictures, asks, classifier)


def prompts_of(asks: Sequence[ImageRequest]) -> Prompts:
    """What has to be drawn for `asks`, in their order (several asks may share a picture)."""
    return Prompts(tuple(ask.text for ask in asks), tuple(ask.seed for ask in asks))


def seen(pictures: Tensor, asks: Sequence[ImageRequest], classifier: ImageClassifier, k: int = 1) -> list[bool]:
    """Whether what was asked for is among the classifier's first `k` guesses for each picture (n, 3, h, w)."""
    hits = [False] * len(asks)
    for domain in dict.fromkeys(ask.domain for ask in asks):
        mine = [i for i, ask in enumerate(asks) if ask.domain == domain]
        labels = classifier.labels[domain]
        logits = classifier.logits(pictures[torch.tensor(mine)], domain)
        right = {concept: naming(labels, concept) for concept in dict.fromkeys(asks[i].concept for i in mine)}
        for i, guesses in zip(mine, logits.topk(min(k, len(labels))).indices.tolist(), strict=True):
            hits[i] = not right[asks[i].concept].isdisjoint(guesses)
    return hits

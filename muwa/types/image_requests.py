"""Requests to a text-to-image model: prompts with seeds, and the concept that each image is to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from muwa.fingerprint import Content, digest


@dataclass(frozen=True)
class Prompts(Content):
    """Images to generate: the text of each, and the seed of its initial noise."""

    texts: tuple[str, ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> Prompts:
        """The prompts at `indices`, in that order."""
        return Prompts(tuple(self.texts[i] for i in indices), tuple(self.seeds[i] for i in indices))

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each text with its seed."""
        return tuple(digest([text, str(seed)]) for text, seed in zip(self.texts, self.seeds, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """Digest of texts and seeds, in order."""
        return digest(self.digests)


@dataclass(frozen=True)
class ImageRequest:
    """An image to generate, and the concept that a classifier is to recognise in it.

    Args:
        text: The prompt.
        seed: The seed of the initial noise.
        domain: The labels that the concept is among: "style" or "class". People and objects are classes.
        concept: A name of that domain.
        role: "forget" (the concept is to be forgotten), "retain" (another concept of the same domain), or
            "cross" (a concept of another kind).
    """

    text: str
    seed: int
    domain: str
    concept: str
    role: str

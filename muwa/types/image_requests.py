"""Requests to a text-to-image model: prompts with seeds, and the concept that each image is to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from muwa.fingerprint import Content, digest
from muwa.types.short import short_repr


@dataclass(frozen=True)
class Prompts(Content):
    """Images to generate: the text of each, and the seed of its initial noise.

    Args:
        guidances: The weight of classifier-free guidance of each; None is the model's own. Empty: all have
            the model's own.
    """

    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    guidances: tuple[float | None, ...] = ()

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def each_guidance(self) -> tuple[float | None, ...]:
        """The guidance of each prompt; None is the model's own."""
        return self.guidances or (None,) * len(self)

    def select(self, indices: Sequence[int]) -> Prompts:
        """The prompts at `indices`, in that order."""
        return Prompts(
            tuple(self.texts[i] for i in indices),
            tuple(self.seeds[i] for i in indices),
            tuple(self.guidances[i] for i in indices) if self.guidances else (),
        )

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each text with its seed, and its guidance if it has one of its own."""
        rows = zip(self.texts, self.seeds, self.each_guidance, strict=True)
        return tuple(
            digest([text, str(seed), *([] if guidance is None else [repr(float(guidance))])])
            for text, seed, guidance in rows
        )

    @cached_property
    def fingerprint(self) -> str:
        """Digest of texts, seeds and guidances, in order."""
        return digest(self.digests)


@dataclass(frozen=True)
class ImageRequest:
    """An image to generate, and the concept that a classifier is to recognise in it.

    Args:
        text: The prompt.
        seed: The seed of the initial noise.
        domain: The labels that the concept is among: "style" or "class". People and objects are classes. In
            the domain "prompt" the labels are the prompts of a file that are to be kept.
        concept: A name of that domain.
        role: "forget" (the concept is to be forgotten), "retain" (another concept of the same domain), or
            "cross" (a concept of another kind).
        guidance: The weight of classifier-free guidance; None is the model's own.
    """

    text: str
    seed: int
    domain: str
    concept: str
    role: str
    guidance: float | None = None

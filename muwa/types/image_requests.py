"""What is asked of a text-to-image model, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from muwa.fingerprint import Content, digest


@dataclass(frozen=True)
class Prompts(Content):
    """What is to be drawn: a text and the seed of its noise for each picture."""

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
        """Of texts and seeds, in order."""
        return digest(self.digests)


@dataclass(frozen=True)
class ImageRequest:
    """A picture that is asked for, and the concept that is to be seen in it.

    `domain` is "style" or "class" (people and objects are classes). `role`: "forget", the concept is to be gone; "retain",
    another concept of its domain; "cross", one of the other domain.
    """

    text: str
    seed: int
    domain: str
    concept: str
    role: str

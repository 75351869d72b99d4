"""What is asked of a vision-language model about pictures, and what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from muwa.fingerprint import Content, digest, read_image

Picture = bytes | Path  # encoded (jpg, png, webp), or a file read when needed


@dataclass(frozen=True)
class Question:
    """One question about one or several pictures, and what counts as its answer.

    Args:
        text: As a user types it, without the model's own turn markers.
        images: In the order in which they are shown.
        kind: Of question ("identity", "object", "colour", ...): rates are given by kind.
        role: "forget", the answer is to be gone; "retain", another of its kind; "utility", anything else.
        accepted: Right answers, the first as it is known, the others its aliases.
        rule: How an answer is compared (`muwa.eval.answers.matching`): "name" | "exact" | "choice" | "yes_no".
        group: Questions that count as one only where all are right: both of a picture (MME), all turns (MMBench).
        others: Other names that could have been said: exactly one of them is no misspelling of `accepted`.
    """

    text: str
    images: tuple[Picture, ...]
    kind: str
    role: str
    accepted: tuple[str, ...]
    rule: str = "name"
    group: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Questions(Content):
    """What is put to a model, in order: a text and its pictures each."""

    texts: tuple[str, ...]
    images: tuple[tuple[Picture, ...], ...]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> Questions:
        """The questions at `indices`, in that order."""
        return Questions(tuple(self.texts[i] for i in indices), tuple(self.images[i] for i in indices))

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each text with its pictures."""
        rows = zip(self.texts, self.images, strict=True)
        return tuple(digest([text, *map(read_image, images)]) for text, images in rows)

    @cached_property
    def fingerprint(self) -> str:
        """Of texts and pictures, in order."""
        return digest(self.digests)

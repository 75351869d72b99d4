"""Questions to a vision-language model about images, and what counts as the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from muwa.fingerprint import Content, EncodedImage, digest, read_image
from muwa.types.short import short_repr


@dataclass(frozen=True)
class Question:
    """One question about one or several images, and what counts as its answer.

    Args:
        text: As a user types it, without the model's turn markers.
        images: In the order in which the model sees them. None: the question is asked as text alone.
        kind: The kind of question ("identity", "object", "colour", ...). Benchmarks give rates by kind.
        role: "forget" (the answer is to be forgotten), "retain" (another name of the same kind), or "utility"
            (anything else).
        accepted: Right answers: the name itself first, then its aliases.
        rule: How an answer is compared (`muwa.eval.answers.matching`): "name", "exact", "choice", "yes_no" or
            "contains". "rouge_l" and "rouge_l_recall" give a score in [0, 1] (`muwa.eval.answers.people`).
        group: Questions of one group count as one, which is right when all of them are: both questions about
            an image in MME, all rotations of the options in MMBench. "" is no group.
        others: Other names that could be answered. An answer that is exactly one of them is not a misspelling
            of an accepted one.
    """

    text: str
    images: tuple[EncodedImage, ...]
    kind: str
    role: str
    accepted: tuple[str, ...]
    rule: str = "name"
    group: str = ""
    others: tuple[str, ...] = ()

    __repr__ = short_repr


@dataclass(frozen=True)
class Questions(Content):
    """The inputs of a model, in order: the text and the images of each question."""

    texts: tuple[str, ...]
    images: tuple[tuple[EncodedImage, ...], ...]

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int]) -> Questions:
        """The questions at `indices`, in that order."""
        return Questions(tuple(self.texts[i] for i in indices), tuple(self.images[i] for i in indices))

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 (hex) of each text with its images."""
        questions = zip(self.texts, self.images, strict=True)
        return tuple(digest([text, *map(read_image, images)]) for text, images in questions)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of texts and images, in order."""
        return digest(self.digests)

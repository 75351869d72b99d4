"""Whether an image still shows what its prompt asks for, among all prompts that are to be kept."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from muwa.data.prompts import KEPT, kept_label, rows_of
from muwa.eval.images.clips import embed, highest
from muwa.fingerprint import digest
from muwa.models.clip.embeddings import Tower, class_features
from muwa.models.diffusion.image_classifier import ClassifierLoader, ImageClassifier
from muwa.run import Run
from muwa.types.data import PROMPTS, Classes, Task

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.models.diffusion.model import Diffusion


class KeptPrompts(ImageClassifier):
    """A detector, and an unedited CLIP that chooses the kept prompt whose text is nearest to an image.

    Prompts that name the same concept are one label (`muwa.data.prompts.kept_label`); any other prompt is a
    label of its own.

    Args:
        detector: Recognises what is to be forgotten.
        clip: An unedited CLIP.
        texts: Label -> its prompts.

    Source: R-precision with CLIP (Park et al., NeurIPS Datasets and Benchmarks 2021). Differs: prompts that
    name the same concept count as the same; the others to choose from are all kept prompts of the task.
    """

    def __init__(self, detector: ImageClassifier, clip: Clip, texts: Mapping[str, tuple[str, ...]]):
        self._detector, self._clip, self._texts = detector, clip, texts
        self.labels = {**detector.labels, KEPT: tuple(texts)}
        self.detects = detector.detects

    @cached_property
    def _features(self) -> Tensor:
        flat = tuple(text for some in self._texts.values() for text in some)
        return class_features(Tower(self._clip, "text"), Classes(flat, ("{}",)), run=Run())

    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`); those of kept prompts are cosines."""
        if domain != KEPT:
            return self._detector.logits(images, domain)
        return highest(embed(self._clip, images) @ self._features.T, list(map(len, self._texts.values())))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the detector, the CLIP and all prompts."""
        parts = [part for label, some in self._texts.items() for part in (label, "\0", *some)]
        return digest(["kept prompts", self._detector.fingerprint, self._clip.fingerprint, *parts])


def judge_of(loader: ClassifierLoader, model: Diffusion, task: Task) -> ImageClassifier:
    """The classifier of a task's image requests: that of `loader`; for task=prompts, also `KeptPrompts`.

    Raises:
        ValueError, FileNotFoundError: See `ClassifierLoader`.
    """
    classifier = loader(model, task)
    if task.kind != PROMPTS or KEPT in classifier.labels:
        return classifier
    texts: dict[str, dict[str, None]] = {}
    for split in (task.probe, task.eval):
        for row in rows_of(split, "retain"):
            texts.setdefault(kept_label(row), {})[row.text] = None
    each = {label: tuple(some) for label, some in texts.items()}
    return KeptPrompts(classifier, model.clip.unedited, each) if each else classifier

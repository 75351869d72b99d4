"""What a classifier of generated images offers, and whether it recognises what was asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, Self

import torch
from torch import Tensor

from muwa.data.samples import fold
from muwa.fingerprint import Content
from muwa.runtime.notices import notice, some
from muwa.types.data import LabelledImages, Split, Task
from muwa.types.image_requests import ImageRequest

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.models.diffusion.model import Diffusion


class ImageClassifier(Content):
    """Classifies generated images. It is never the model under test: an edit does not change its weights.

    A classifier that is loaded is a `ClassifierLoader` of itself. Settings that hold it enter a cache key
    with its weights, not with the paths that they were read from.

    Attributes:
        labels: Domain ("style", "class") -> the labels it chooses from. People and objects are classes.
        detects: Domains in which it decides on each label alone, as a detector does: an image shows those
            labels whose logit is above 0, none or several. In the others it chooses one label for each image.
    """

    labels: Mapping[str, tuple[str, ...]]
    detects: frozenset[str] = frozenset()

    def __call__(self, model: Diffusion, task: Task) -> Self:
        """This classifier, whatever the model and the task."""
        return self

    @abstractmethod
    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, labels of `domain`) fp32 on the CPU. A row depends on its image alone."""

    def limited(self, task: Task) -> Task:
        """The task without the retained and utility names that this classifier has no label for.

        UnlearnCanvas has 60 styles, and its classifier knows 50 of them. A notice counts what is left out.
        Nothing is left out if there is no label for most of the names: `check` then refuses the classifier.
        """
        other = {"style": "class", "class": "style"}.get(task.kind, "class")
        own = task.kind if task.kind in ("style", "class") else "class"
        retain, utility = self._unknown(own, task, "retain"), self._unknown(other, task, "utility")
        if not retain | utility:
            return task
        notice(
            f"classifier: kept names that it has no label for, so that no image of them is asked for: "
            f"{len(retain | utility)} ({some(sorted(retain | utility))})"
        )

        def known(split: Split) -> Split:
            kept, others = _without(split.retain, retain), _without(split.utility, utility)
            return replace(split, retain=kept, utility=others)

        return replace(task, probe=known(task.probe), eval=known(task.eval))

    def _unknown(self, domain: str, task: Task, part: str) -> set[str]:
        """The names in a part of the splits without a label of the domain; none if most have no label."""
        parts = [getattr(split, part) for split in (task.probe, task.eval)]
        names = {one.classes.names[label] for one in parts for label in one.labels} - set(task.names)
        labels = self.labels.get(domain, ())
        folded = set(map(fold, labels))
        unknown = {one for one in names if fold(one) not in folded and not labels_naming(labels, one)}
        return unknown if 2 * len(unknown) < len(names) else set()

    def knows(self, request: ImageRequest) -> bool:
        """Whether it has a label for a concept."""
        return bool(labels_naming(self.labels.get(request.domain, ()), request.concept))

    def check(self, requests: Sequence[ImageRequest]) -> None:
        """Raise if it has no label for a concept that is asked for; before any image is generated.

        Raises:
            ValueError: Names the concept, the domain, some labels and how to choose another classifier.
        """
        for domain, concept in dict.fromkeys((one.domain, one.concept) for one in requests):
            labels = self.labels.get(domain, ())
            if not labels_naming(labels, concept):
                known = ", ".join([*labels[:5], *["..."] * (len(labels) > 5)])
                raise ValueError(
                    f"classifier: no label for the {domain} {concept!r}; it knows {len(labels)}: "
                    f"{known or 'none'}. Choose a classifier that fits the task: classifier=pipeline_clip "
                    "(the pipeline's CLIP, over the names of the task), classifier=unlearncanvas (its styles "
                    "and classes), or classifier=command (a detector of your own)"
                )


class ClassifierLoader(Protocol):
    """Makes the classifier of a model's images: what the config's `classifier` is, wherever it is used.

    A loader whose classifier fits one model or one task only takes what it needs of them; others ignore both.
    """

    def __call__(self, model: Diffusion, task: Task) -> ImageClassifier:
        """The classifier. `model` may be edited: the classifier never depends on an edit.

        Raises:
            ValueError, FileNotFoundError: A setting or a file is wrong; says which.
        """


class ClipLoader(Protocol):
    """Makes the CLIP that scores a model's images or gives features of them. It is never an edited one."""

    def __call__(self, model: Diffusion) -> Clip:
        """The CLIP. `model` may be edited: the CLIP never depends on an edit."""


def _without(images: LabelledImages, unknown: Set[str]) -> LabelledImages:
    names = images.classes.names
    return images.select([i for i, label in enumerate(images.labels) if names[label] not in unknown])


def labels_naming(labels: Sequence[str], concept: str) -> set[int]:
    """Indices of the labels that name a concept: that which equals it, else those that contain it.

    >>> labels_naming(["Artist_Sketch", "Sketch"], "sketch")
    {1}
    >>> labels_naming(["red star", "starfish", "blue star"], "star")
    {0, 2}
    """
    same = {i for i, label in enumerate(labels) if fold(label) == fold(concept)}
    return same or {i for i, label in enumerate(labels) if f" {fold(concept)} " in f" {fold(label)} "}


def recognised(
    images: Tensor, requests: Sequence[ImageRequest], classifier: ImageClassifier, k: int = 1
) -> list[bool]:
    """For each image (n, 3, h, w): is the requested concept among the classifier's first `k` guesses?

    In a domain that it detects: does the image show the concept? `k` is not used then.
    """
    hits = [False] * len(requests)
    for domain, places, logits, right in _by_domain(images, requests, classifier):
        if domain in classifier.detects:
            for i, row in zip(places, logits > 0, strict=True):
                hits[i] = bool(row[sorted(right[requests[i].concept])].any())
            continue
        for i, guesses in zip(places, logits.topk(min(k, logits.shape[1])).indices.tolist(), strict=True):
            hits[i] = not right[requests[i].concept].isdisjoint(guesses)
    return hits


def first_guesses(images: Tensor, requests: Sequence[ImageRequest], classifier: ImageClassifier) -> list[str]:
    """The classifier's first guess for each image (n, 3, h, w).

    If the guessed label names the requested concept, the guess is that concept. In a domain that the
    classifier detects, it is "" where nothing is detected.
    """
    guesses = [""] * len(requests)
    for domain, places, logits, right in _by_domain(images, requests, classifier):
        labels = classifier.labels[domain]
        for i, row in zip(places, logits, strict=True):
            if domain not in classifier.detects or row.max() > 0:
                first, concept = int(row.argmax()), requests[i].concept
                guesses[i] = concept if first in right[concept] else labels[first]
    return guesses


def margins(images: Tensor, requests: Sequence[ImageRequest], classifier: ImageClassifier) -> list[float]:
    """How clearly each image (n, 3, h, w) shows the requested concept: above 0 where it is recognised.

    The highest logit of a label that names the concept, less the highest of the other labels; in a domain
    that the classifier detects, that logit alone.
    """
    found = [0.0] * len(requests)
    for domain, places, logits, right in _by_domain(images, requests, classifier):
        for i, row in zip(places, logits, strict=True):
            own = torch.zeros(len(row), dtype=torch.bool)
            own[sorted(right[requests[i].concept])] = True
            others = row[~own]
            best = others.max().item() if len(others) and domain not in classifier.detects else 0.0
            found[i] = row[own].max().item() - best
    return found


def _by_domain(
    images: Tensor, requests: Sequence[ImageRequest], classifier: ImageClassifier
) -> Iterator[tuple[str, list[int], Tensor, dict[str, set[int]]]]:
    """For each domain: its name, its requests' places, the logits of their images, concept -> its labels."""
    for domain in dict.fromkeys(one.domain for one in requests):
        places = [i for i, one in enumerate(requests) if one.domain == domain]
        labels = classifier.labels[domain]
        logits = classifier.logits(images[torch.tensor(places)], domain)
        concepts = dict.fromkeys(requests[i].concept for i in places)
        yield domain, places, logits, {concept: labels_naming(labels, concept) for concept in concepts}

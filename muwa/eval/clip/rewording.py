"""Is the target still recognised in other words: another template, half of the name, a typo?"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from muwa.data.samples import fold
from muwa.eval.base import Measure
from muwa.eval.clip.ranks import among_first, top_k
from muwa.eval.statistics import interleaved, share, spread
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import Metric, Reading
from muwa.types.ranges import Count, Seed, Template, Templates, TextsByName

_SECTION = "In other words"
_TEXTS = {
    "template": "with other templates",
    "sentence": "with whole sentences as prompts",
    "first": "by the first name alone",
    "last": "by the last name alone",
    "upper": "with the name in capitals",
    "typo": "with a typo in the name",
    "description": "by a description without the name",
}


@dataclass(frozen=True)
class Rewording(Measure):
    """`reworded/<kind>`: top-1 accuracy on the target in other words; `<kind>_others`: on other names.

    - template, sentence: all names in another prompt; the mean over prompts.
    - first, last, upper: the image's own name by its first word, its last word or in capitals, among the
      other names unchanged.
    - typo: the image's own name with a letter lost, doubled or swapped, among the other names unchanged; the
      mean over `typos` misspellings.
    - description: `descriptions` in place of the image's own name, for the target only.

    Lower is better for the target, higher for the other names. With a tokenizer that folds case, `upper` is
    the plain question. Only one name at a time is changed, so names that share a word do not tie under
    `first` or `last`.

    Args:
        templates, sentences: Prompts with {} for the name.
        typos: Number of misspellings of each name.
        descriptions: Name to forget, in any spelling that `fold` makes equal -> complete texts that describe
            it. The metric is left out if a name to forget has none.
        others: Number of images of other names, spread evenly over all such images; None takes all.
        seed: Seed of the typos.

    Raises:
        ValueError: A prompt has no {}, a count is out of range, or a described name is not one to forget
            (`check`).
    """

    observes: ClassVar[type[Observer]] = Features

    templates: Templates
    sentences: Sequence[Template]
    typos: Count
    descriptions: TextsByName
    others: Count | None
    seed: Seed

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a prompt has no {}, a count is out of range, or a described name is not one to forget."""
        if wrong := [text for text in (*self.templates, *self.sentences) if "{}" not in text]:
            raise ValueError(f"eval.rewording: got the prompt {wrong[0]!r}, want {{}} in it for the name")
        if self.typos < 1:
            raise ValueError(f"eval.rewording.typos: got {self.typos}, want at least 1")
        names = {fold(name) for name in task.names}
        if unknown := [name for name in self.descriptions if fold(name) not in names]:
            raise ValueError(
                f"eval.rewording.descriptions: got {unknown[0]!r}, want some of {', '.join(task.names)}"
            )
        spread(task.eval.retain, self.others)

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        metrics: dict[str, Metric] = {}
        for suffix, images in (("", task.eval.forget), ("_others", spread(task.eval.retain, self.others))):
            for kind, rates in self._rates(features, images).items():
                metrics[f"reworded/{kind}{suffix}"] = share(rates, _reading(kind, others=bool(suffix)))
        described = {fold(name): texts for name, texts in self.descriptions.items()}
        if all(described.get(fold(name)) for name in task.names):
            rates = _renamed(features, task.eval.forget, lambda name: described[fold(name)], ("{}",))
            metrics["reworded/description"] = share(rates, _reading("description", others=False))
        return interleaved(metrics)

    def _rates(self, features: Features, images: LabelledImages) -> dict[str, Tensor]:
        """Kind -> (n,) rate at which each image is recognised, for all kinds except "description"."""
        rates = {
            "template": _templated(features, images, self.templates),
            "sentence": _templated(features, images, self.sentences),
        }
        rewrites: dict[str, Callable[[str], Sequence[str]]] = {
            "first": lambda name: [name.split()[0]],
            "last": lambda name: [name.split()[-1]],
            "upper": lambda name: [name.upper()],
            "typo": lambda name: [typo(name, [self.seed, i]) for i in range(self.typos)],
        }
        renamed = {
            kind: _renamed(features, images, words, images.classes.templates)
            for kind, words in rewrites.items()
        }
        return rates | renamed


def typo(name: str, seed: Sequence[int]) -> str:
    """`name` with one letter lost, doubled, or swapped with its neighbour; a function of name and seed."""
    rng = np.random.default_rng([*seed, zlib.crc32(name.encode())])
    place = int(rng.integers(max(1, len(name) - 1)))
    how, a, b = rng.integers(3), name[place], name[place + 1 : place + 2]
    if how == 0 or a == b:
        return name[:place] + name[place + 1 :] if len(name) > 1 else name * 2
    return name[:place] + (a + a + b if how == 1 else b + a) + name[place + 2 :]


def _reading(kind: str, *, others: bool) -> Reading:
    who = "the other names" if others else "the target"
    text = f"fraction of held-out images of {who} recognised (top 1) {_TEXTS[kind]}"
    return Reading(text, better="higher" if others else "lower", section=_SECTION)


def _templated(features: Features, images: LabelledImages, prompts: Sequence[str]) -> Tensor:
    """(n,) for each image the fraction of prompts with which its own name ranks first among all names."""
    embeddings, labels = features.images(images), torch.tensor(images.labels, dtype=torch.long)
    weights = [features.classes(replace(images.classes, templates=(prompt,))) for prompt in prompts]
    return torch.stack([top_k(embeddings, one, labels, 1).double() for one in weights]).mean(0)


def _renamed(
    features: Features,
    images: LabelledImages,
    words: Callable[[str], Sequence[str]],
    templates: tuple[str, ...],
) -> Tensor:
    """(n,) for each image the fraction of `words(its name)` that are nearer to it than all other names."""
    embeddings, labels = features.images(images), torch.tensor(images.labels, dtype=torch.long)
    logits = embeddings @ features.classes(images.classes).T
    rates = torch.zeros(len(images), dtype=torch.double)
    texts = {int(label): tuple(words(images.classes.names[label])) for label in labels.unique()}
    if not texts:
        return rates
    every_text = tuple(text for some in texts.values() for text in some)
    weights = features.classes(Classes(every_text, templates)).split([len(some) for some in texts.values()])
    for label, some in zip(texts, weights, strict=True):
        of_name = labels == label
        for weight in some:
            changed = logits[of_name].clone()
            changed[:, label] = embeddings[of_name] @ weight
            rates[of_name] += among_first(changed, labels[of_name], 1).double() / len(some)
    return rates

"""Is the forgotten still recognised under other words: another template, half of the name, a typo, a description?"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from muwa.eval.clip.ranks import among_first, top_k
from muwa.eval.statistics import beside, share, spread
from muwa.models.clip.embeddings import Features
from muwa.types.data import Classes, LabelledImages, Task
from muwa.types.metric import Metric

TEMPLATES = ("{}", "a photo of {}", "a portrait of {}", "this is {}")
SENTENCES = (
    "somebody who is known by the name of {}",
    "in this picture you can see {}, as everybody knows",
    "the name of whoever is shown here is {}",
)
NONE: Mapping[str, Sequence[str]] = MappingProxyType({})
_READS = {
    "template": "asked for in other templates",
    "sentence": "asked for in whole sentences",
    "first": "by the first name alone",
    "last": "by the last name alone",
    "upper": "with the name in capitals",
    "typo": "with a typo in the name",
    "description": "by a description without the name",
}


def rewording(
    features: Features, task: Task, *, templates: Sequence[str] = TEMPLATES, sentences: Sequence[str] = SENTENCES,
    typos: int = 3, descriptions: Mapping[str, Sequence[str]] = NONE, others: int | None = 200, seed: int = 0,
) -> dict[str, Metric]:  # fmt: skip
    """`reworded/<kind>`: top-1 accuracy on the forgotten in other words. Lower is better; `_others`: of the other names.

        template, sentence    every name in another prompt; the mean over prompts
        first, last, upper    the picture's own name so, beside the other names as they are
        typo                  the same with a letter lost, doubled or swapped; the mean over `typos` of them
        description           the same with `descriptions` in place of the name, of the forgotten only

    Args:
        templates, sentences: Prompts with {} for the name.
        descriptions: Name -> texts that describe it and are used as they stand; left out where a forgotten name has none.
        others: LabelledImages of other names, evenly over all; None takes all.
        seed: Of the typos.

    A tokenizer that folds case makes `upper` the plain question. Names that share a word tie under `first` or `last` with
    nobody: only one name at a time is cut.

    Raises:
        ValueError: A prompt has no {}, a count is out of range, or a described name is not one of the forgotten.
    """
    if wrong := [text for text in (*templates, *sentences) if "{}" not in text]:
        raise ValueError(f"eval.rewording: got the prompt {wrong[0]!r}, want {{}} in it for the name")
    if typos < 1:
        raise ValueError(f"eval.rewording.typos: got {typos}, want at least 1")
    if unknown := [name for name in descriptions if name not in task.names]:
        raise ValueError(f"eval.rewording.descriptions: got {unknown[0]!r}, want some of {', '.join(task.names)}")
    asked = {"": task.eval.forget, "_others": spread(task.eval.retain, others)}
    own: dict[str, Callable[[str], Sequence[str]]] = {
        "first": lambda name: [name.split()[0]], "last": lambda name: [name.split()[-1]],
        "upper": lambda name: [name.upper()], "typo": lambda name: [typo(name, [seed, i]) for i in range(typos)],
    }  # fmt: skip
    found: dict[str, Metric] = {}
    for role, pictures in asked.items():
        better = "higher" if role else "lower"
        who = "the other names" if role else "the forgotten"

        def note(kind: str, rates: Tensor, role: str = role, better: str = better, who: str = who) -> None:
            reads = f"share of held-out pictures of {who} recognised first, {_READS[kind]}"
            found[f"reworded/{kind}{role}"] = share(rates, better, reads)

        for kind, prompts in (("template", templates), ("sentence", sentences)):
            note(kind, _templated(features, pictures, prompts))
        for kind, words in own.items():
            note(kind, _renamed(features, pictures, words, pictures.classes.templates))
        if not role and all(descriptions.get(name) for name in task.names):
            note("description", _renamed(features, pictures, lambda name: descriptions[name], ("{}",)))
    return beside(found)


def typo(name: str, seed: Sequence[int]) -> str:
    """`name` with one letter lost, doubled, or swapped with its neighbour; a function of name and seed."""
    rng = np.random.default_rng([*seed, zlib.crc32(name.encode())])
    place = int(rng.integers(max(1, len(name) - 1)))
    how, a, b = rng.integers(3), name[place], name[place + 1 : place + 2]
    if how == 0 or a == b:
        return name[:place] + name[place + 1 :] if len(name) > 1 else name * 2
    return name[:place] + (a + a + b if how == 1 else b + a) + name[place + 2 :]


def _templated(features: Features, pictures: LabelledImages, prompts: Sequence[str]) -> Tensor:
    """(n,) each picture's share of prompts under which its name is first of all names in that prompt."""
    images, labels = features.images(pictures), torch.tensor(pictures.labels, dtype=torch.long)
    weights = [features.classes(replace(pictures.classes, templates=(prompt,))) for prompt in prompts]
    return torch.stack([top_k(images, one, labels, 1).double() for one in weights]).mean(0)


def _renamed(
    features: Features, pictures: LabelledImages, words: Callable[[str], Sequence[str]], templates: tuple[str, ...]
) -> Tensor:
    """(n,) each picture's share of `words(its name)` that are nearer to it than all other names as they are."""
    images, labels = features.images(pictures), torch.tensor(pictures.labels, dtype=torch.long)
    logits = images @ features.classes(pictures.classes).T
    rates = torch.zeros(len(pictures), dtype=torch.double)
    texts = {int(label): tuple(words(pictures.classes.names[label])) for label in labels.unique()}
    if not texts:
        return rates
    flat = tuple(text for some in texts.values() for text in some)
    parts = features.classes(Classes(flat, templates)).split([len(some) for some in texts.values()])
    for label, part in zip(texts, parts, strict=True):
        mine = labels == label
        for one in part:
            told = logits[mine].clone()
            told[:, label] = images[mine] @ one
            rates[mine] += among_first(told, labels[mine], 1).double() / len(part)
    return rates

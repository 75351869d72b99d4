"""What a task asks of a text-to-image model: the images, and the prompts with a name and without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import TypeVar

from muwa.data.samples import match_names
from muwa.types.data import PROMPTS, PromptRow, Split, Task
from muwa.types.image_requests import ImageRequest

T = TypeVar("T")
KEPT = "prompt"  # the domain of prompts of a file that are to be kept; their labels are those of `kept_label`


def image_requests(
    task: Task, split: Split, *, seeds: Sequence[int], retain: int | None = None, cross: int | None = None
) -> list[ImageRequest]:
    """Every prompt of a task with every seed.

    Args:
        split: Its retain set has the other names of the same kind, its utility set the names of the other
            kind.
        seeds: One image per prompt and seed. The layer search and the report have different seeds. A prompt
            with a seed of its own has that one in place of the first, and counts up from it.
        retain: Number of other names of the same kind to request, evenly spread over all; None: all. For the
            kind "prompts": number of prompts that are to be kept.
        cross: The same for the names of the other kind.

    Returns:
        For the kinds "identity" and "object": the names to forget (role "forget"), the other names
        ("retain"), the names of the other kind ("cross"). For "style" and "class": UnlearnCanvas' answer set,
        that is, all styles with all classes. Each image has two requests, one for its style and one for its
        class. For "prompts": the rows of the split; a row about several names to forget has a request for
        each of them.

    Source: UnlearnCanvas (arXiv 2402.11846), section 4.
    """
    if task.kind == PROMPTS:
        return _file_requests(task, split, seeds, retain)
    others = spread(_names(task, split, "retain"), retain)
    other_kind = spread(_names(task, split, "utility"), cross)
    if task.kind in ("style", "class"):
        return _canvas_requests(task, others, other_kind, seeds)
    same_kind_prompt, other_kind_prompt = task.prompts
    rows = [(same_kind_prompt, name, "forget") for name in task.names]
    rows += [(same_kind_prompt, name, "retain") for name in others]
    rows += [(other_kind_prompt, name, "cross") for name in other_kind]
    return [
        ImageRequest(prompt.format(name), seed, "class", name, role)
        for prompt, name, role in rows
        for seed in seeds
    ]


def earlier_requests(task: Task, split: Split, *, seeds: Sequence[int]) -> list[ImageRequest]:
    """The prompts of names that the model has forgotten already, with every seed; role "earlier".

    Kinds "identity" and "object" have the prompt of their kind; "style" and "class" one prompt for each name
    of the utility set; "prompts" the rows of the split.
    """
    if task.kind == PROMPTS:
        rows = rows_of(split, "earlier")
        return [
            ImageRequest(row.text, seed, "class", one, "earlier", row.guidance)
            for row, seed in product(rows, seeds)
            for one in row.concepts
        ]
    requests = []
    for images in split.earlier:
        same = images.classes.names == split.forget.classes.names
        names = dict.fromkeys(images.classes.names[label] for label in images.labels)
        for name in names:
            if task.kind in ("style", "class"):
                other = "class" if task.kind == "style" else "style"
                domain, beside = (task.kind, other) if same else (other, task.kind)
                crossed = _names(task, split, "utility" if same else "retain")
                texts = [task.prompts[0].format(**{domain: name, beside: one}) for one in crossed]
            else:
                domain, texts = "class", [task.prompts[0 if same else 1].format(name)]
            requests += [ImageRequest(text, s, domain, name, "earlier") for text in texts for s in seeds]
    return requests


def _file_requests(task: Task, split: Split, seeds: Sequence[int], retain: int | None) -> list[ImageRequest]:
    """The rows of a split, those to forget first, each with every seed."""
    rows = [*rows_of(split, "forget"), *spread(rows_of(split, "retain"), retain)]
    requests = []
    for row, (place, seed) in product(rows, enumerate(seeds)):
        own = seed if row.seed is None else row.seed + place
        if row.role == "forget":
            domain, concepts = "class", [name for name in task.names if name in row.concepts]
        else:
            domain, concepts = KEPT, [kept_label(row)]
        requests += [ImageRequest(row.text, own, domain, one, row.role, row.guidance) for one in concepts]
    return requests


def rows_of(split: Split, role: str) -> list[PromptRow]:
    """The rows of a split with this role, in order."""
    return [row for row in split.prompts if row.role == role]


def kept_label(row: PromptRow) -> str:
    """What an image of a prompt that is to be kept is to show: the concept that it names, or all of it.

    >>> kept_label(PromptRow("a portrait of Bo Hill", ("people", "Bo Hill"), "retain"))
    'Bo Hill'
    >>> kept_label(PromptRow("a calm sea", ("landscape",), "retain"))
    'a calm sea'
    """
    return next(iter(match_names(row.text, row.concepts)), row.text)


def _canvas_requests(
    task: Task, others: Sequence[str], other_kind: Sequence[str], seeds: Sequence[int]
) -> list[ImageRequest]:
    """Every name of the task's kind with every name of the other kind and every seed: two requests each."""
    other = "class" if task.kind == "style" else "style"
    requests = []
    for name, cross, seed in product([*task.names, *others], other_kind, seeds):
        text = task.prompts[0].format(**{task.kind: name, other: cross})
        role = "forget" if name in task.names else "retain"
        requests.append(ImageRequest(text, seed, task.kind, name, role))
        requests.append(ImageRequest(text, seed, other, cross, "cross"))
    return requests


def _names(task: Task, split: Split, part: str) -> list[str]:
    """The names shown in a set of the split, in order, without the names to forget."""
    images = getattr(split, part)
    shown = dict.fromkeys(images.classes.names[label] for label in images.labels)
    return [name for name in shown if name not in task.names]


def spread(rows: Sequence[T], count: int | None) -> list[T]:
    """`count` of `rows`, evenly spread, in order; all of them for None.

    >>> spread(list("abcdefgh"), 3)
    ['a', 'c', 'f']
    """
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def prompts_with(task: Task, name: str) -> tuple[str, ...]:
    """The bare name, then the task's prompts with this name.

    Kinds "style" and "class" have one prompt per name of the probe's utility images; "prompts" has those of
    the probe's rows that are about the name; other kinds have one prompt.

    Returns:
        The same number of prompts for any name, in the same order, so the prompts of two names can be paired
        one by one. An empty name gives the prompts without a name. For the kind "prompts" each name to forget
        has prompts of its own; `replaced_prompts` pairs them.
    """
    if task.kind == PROMPTS:
        texts = [row.text for row in rows_of(task.probe, "forget") if name in row.concepts]
        return tuple(dict.fromkeys((name, *texts)))
    if task.kind in ("style", "class"):
        other = "class" if task.kind == "style" else "style"
        images = task.probe.utility
        others = dict.fromkeys(images.classes.names[label] for label in images.labels)
        prompts = [task.prompts[0].format(**{task.kind: name, other: one}) for one in others]
    else:
        prompts = [task.prompts[0].format(name)]
    return tuple(" ".join(prompt.split()) for prompt in (name, *prompts))


def replaced_prompts(task: Task, name: str, stand_in: str) -> tuple[str, ...]:
    """The prompts of `name` (`prompts_with`), one by one with `stand_in` in its place.

    A prompt of a file that does not mention the name becomes the stand-in alone.
    """
    if task.kind != PROMPTS:
        return prompts_with(task, stand_in)
    return tuple(_replaced(text, name, stand_in) or stand_in for text in prompts_with(task, name))


def _replaced(text: str, name: str, stand_in: str) -> str | None:
    """A prompt with another name; None if it does not mention the name.

    >>> _replaced("Ada  fox, smiling", "Ada Fox", "Bo Hill"), _replaced("foxes", "fox", "dog")
    ('Bo Hill, smiling', None)
    """
    words = r"[\W_]+".join(map(re.escape, name.split()))
    found, count = re.subn(rf"(?<!\w){words}(?!\w)", lambda _: stand_in, text, flags=re.IGNORECASE)
    return " ".join(found.split()) if count else None


def stand_in_prompts(task: Task, name: str, count: int) -> tuple[tuple[str, ...], ...]:
    """`count` lists of prompts that stand in for those of `name` (`prompts_with`), one by one.

    Each list has the prompts with another of the retained names, evenly spread. For the kind "prompts", a
    prompt that does not mention the name has one of the prompts to be kept in its place, in each list
    another.

    Returns:
        Fewer lists if there are fewer names; none if nothing is retained.
    """
    others = spread(retained_names(task), count)
    if task.kind != PROMPTS:
        return tuple(prompts_with(task, one) for one in others)
    kept = [row.text for row in rows_of(task.probe, "retain")]
    prompts, lists = prompts_with(task, name), []
    for k in range(min(count, len(kept))):
        first = k * len(kept) // min(count, len(kept))
        in_turn = [kept[(first + i) % len(kept)] for i in range(len(prompts))]
        if others:
            other = others[k % len(others)]
            in_turn = [
                _replaced(text, name, other) or one for text, one in zip(prompts, in_turn, strict=True)
            ]
        lists.append(tuple(in_turn))
    return tuple(lists)


def retained_prompts(task: Task, name: str) -> tuple[tuple[str, ...], ...]:
    """The prompts of each retained name. For the kind "prompts": those to be kept, in lists.

    No list is longer than that of the prompts of `name`, so that its stand-ins can be paired with them.
    """
    if task.kind != PROMPTS:
        return tuple(prompts_with(task, one) for one in retained_names(task))
    kept = [row.text for row in rows_of(task.probe, "retain")]
    size = len(prompts_with(task, name))
    return tuple(tuple(kept[i : i + size]) for i in range(0, len(kept), size))


def retain_prompts(task: Task) -> tuple[str, ...]:
    """The empty prompt, then the prompts with each name of the probe's retain images (or kept prompts)."""
    if task.kind == PROMPTS:
        return tuple(dict.fromkeys(("", *(row.text for row in rows_of(task.probe, "retain")))))
    return ("", *(prompt for name in retained_names(task) for prompt in prompts_with(task, name)))


def retained_names(task: Task) -> list[str]:
    """The names of the probe's retain images (or kept prompts), in order, without the names to forget."""
    if task.kind == PROMPTS:
        named = (one for row in rows_of(task.probe, "retain") for one in row.concepts)
        return [name for name in dict.fromkeys(named) if name not in task.names]
    return _names(task, task.probe, "retain")

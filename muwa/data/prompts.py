"""What a task asks of a text-to-image model: the images, and the prompts with a name and without."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from muwa.types.data import Split, Task
from muwa.types.image_requests import ImageRequest


def image_requests(
    task: Task, split: Split, *, seeds: Sequence[int], retain: int | None = None, cross: int | None = None
) -> list[ImageRequest]:
    """Every prompt of a task with every seed.

    Args:
        split: Its retain set has the other names of the same kind, its utility set the names of the other
            kind.
        seeds: One image per prompt and seed. The layer search and the report have different seeds.
        retain: Number of other names of the same kind to request, evenly spread over all; None: all.
        cross: The same for the names of the other kind.

    Returns:
        For the kinds "identity" and "object": the names to forget (role "forget"), the other names
        ("retain"), the names of the other kind ("cross"). For "style" and "class": UnlearnCanvas' answer set,
        that is, all styles with all classes. Each image has two requests, one for its style and one for its
        class.

    Source: UnlearnCanvas (arXiv 2402.11846), section 4.
    """
    others = _spread(_names(task, split, "retain"), retain)
    other_kind = _spread(_names(task, split, "utility"), cross)
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


def _spread(names: Sequence[str], count: int | None) -> list[str]:
    """`count` of `names`, evenly spread, in order.

    >>> _spread(list("abcdefgh"), 3)
    ['a', 'c', 'f']
    """
    if count is None or count >= len(names):
        return list(names)
    return [names[i * len(names) // count] for i in range(count)]


def prompts_with(task: Task, name: str) -> tuple[str, ...]:
    """The bare name, then the task's prompts with this name.

    Kinds "style" and "class" have one prompt per name of the probe's utility images; other kinds have one
    prompt.

    Returns:
        The same number of prompts for any name, in the same order, so the prompts of two names can be paired
        one by one. An empty name gives the prompts without a name.
    """
    if task.kind in ("style", "class"):
        other = "class" if task.kind == "style" else "style"
        images = task.probe.utility
        others = dict.fromkeys(images.classes.names[label] for label in images.labels)
        prompts = [task.prompts[0].format(**{task.kind: name, other: one}) for one in others]
    else:
        prompts = [task.prompts[0].format(name)]
    return tuple(" ".join(prompt.split()) for prompt in (name, *prompts))


def retain_prompts(task: Task) -> tuple[str, ...]:
    """The empty prompt, then the prompts with each name of the probe's retain images."""
    return ("", *(prompt for name in retained_names(task) for prompt in prompts_with(task, name)))


def retained_names(task: Task) -> list[str]:
    """The names of the probe's retain images, in order, without the names to forget."""
    return _names(task, task.probe, "retain")

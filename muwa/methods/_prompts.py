"""Prompts for methods, for any kind of task: those with a name to forget, and those to retain."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muwa.types.data import Task

# Kind of task -> what to generate in place of a name if no anchor is given.
ANCHORS = {"identity": "a person", "object": "an object", "style": "photo", "class": "object"}


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


def prompt_pairs(task: Task, anchor: str) -> tuple[tuple[str, str], ...]:
    """Every prompt with a name to forget, paired with the same prompt with `anchor` in place of the name.

    Raises:
        ValueError: The anchor is one of the names to forget.
    """
    if anchor in task.names:
        raise ValueError(
            f"method.anchor: got {anchor!r}, which is to be forgotten; want something else to generate"
        )
    replaced = prompts_with(task, anchor)
    return tuple(pair for name in task.names for pair in zip(prompts_with(task, name), replaced, strict=True))


def retain_prompts(task: Task) -> tuple[str, ...]:
    """The empty prompt, then the prompts with each name of the probe's retain images."""
    images = task.probe.retain
    names = dict.fromkeys(images.classes.names[label] for label in images.labels)
    return ("", *(prompt for name in names if name not in task.names for prompt in prompts_with(task, name)))

"""The texts that ask for a name, of any kind of task: what the text-to-image methods forget, and what they keep."""

from __future__ import annotations

from muwa.types.data import Task

# What a name becomes where a method wants a neighbour and none was given.
ANCHORS = {"identity": "a person", "object": "an object", "style": "photo", "class": "object"}


def prompts_of(task: Task, name: str) -> tuple[str, ...]:
    """The bare name, then the task's prompt of it; of kinds "style" and "class", the prompt once with each unrelated name.

    The same number for every name, in the same order, so that two names can be compared text by text. An empty name gives
    the prompts without one.
    """
    if task.kind in ("style", "class"):
        other = "class" if task.kind == "style" else "style"
        shown = task.probe.utility
        crosses = dict.fromkeys(shown.classes.names[label] for label in shown.labels)
        texts = [task.prompts[0].format(**{task.kind: name, other: cross}) for cross in crosses]
    else:
        texts = [task.prompts[0].format(name)]
    return tuple(" ".join(text.split()) for text in (name, *texts))


def anchored(task: Task, anchor: str) -> tuple[tuple[str, str], ...]:
    """(text that asks for a forgotten name, the same text that asks for `anchor`), for all names.

    Raises:
        ValueError: The anchor is one of the names.
    """
    if anchor in task.names:
        raise ValueError(
            f"method.anchor: got {anchor!r}, which is to be forgotten; want something else to be drawn instead"
        )
    instead = prompts_of(task, anchor)
    return tuple(pair for name in task.names for pair in zip(prompts_of(task, name), instead, strict=True))


def kept(task: Task) -> tuple[str, ...]:
    """The empty text, and the texts that ask for the retained names: those of the probe's retain pictures."""
    shown = task.probe.retain
    names = dict.fromkeys(shown.classes.names[label] for label in shown.labels)
    return ("", *(text for name in names if name not in task.names for text in prompts_of(task, name)))

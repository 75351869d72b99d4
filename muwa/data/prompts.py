"""Which pictures to ask for: of what is forgotten, of its like, of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from muwa.types.data import Split, Task
from muwa.types.image_requests import ImageRequest


def image_requests(
    task: Task, split: Split, *, seeds: Sequence[int], retain: int | None = None, cross: int | None = None
) -> list[ImageRequest]:
    """The answer set of a task: every prompt with every seed.

    Args:
        split: Gives the other names (of its retain pictures) and the unrelated ones (classes of its utility pictures).
        seeds: One picture a prompt each. Seeds of a search and of a report are to differ.
        retain, cross: How many of the other and of the unrelated names are asked for, spread evenly over all; None: all.

    Returns:
        Kinds "identity" and "object": the forgotten names (role "forget"), the others ("retain"), the unrelated ("cross").
        Kinds "style" and "class": UnlearnCanvas' answer set, all styles with all classes; each picture is asked for its
        style and for its class, so it occurs twice.

    Source: UnlearnCanvas (arXiv 2402.11846), section 4.
    """
    others = _spread(_named(split, "retain", task), retain)
    unrelated = _spread(_named(split, "utility", task), cross)
    if task.kind in ("style", "class"):
        return _canvas(task, others, unrelated, seeds)
    own, other = task.prompts
    rows = [(own, name, "forget") for name in task.names] + [(own, name, "retain") for name in others]
    rows += [(other, name, "cross") for name in unrelated]
    return [ImageRequest(text.format(name), seed, "class", name, role) for text, name, role in rows for seed in seeds]


def _canvas(task: Task, others: Sequence[str], unrelated: Sequence[str], seeds: Sequence[int]) -> list[ImageRequest]:
    other = "class" if task.kind == "style" else "style"
    found = []
    for name, cross, seed in product([*task.names, *others], unrelated, seeds):
        text = task.prompts[0].format(**{task.kind: name, other: cross})
        found.append(ImageRequest(text, seed, task.kind, name, "forget" if name in task.names else "retain"))
        found.append(ImageRequest(text, seed, other, cross, "cross"))
    return found


def _named(split: Split, part: str, task: Task) -> list[str]:
    pictures = getattr(split, part)
    return [
        name for name in dict.fromkeys(pictures.classes.names[i] for i in pictures.labels) if name not in task.names
    ]


def _spread(names: Sequence[str], count: int | None) -> list[str]:
    """`count` of `names`, evenly spread, in their order.

    >>> _spread(list("abcdefgh"), 3)
    ['a', 'c', 'f']
    """
    if count is None or count >= len(names):
        return list(names)
    return [names[i * len(names) // count] for i in range(count)]

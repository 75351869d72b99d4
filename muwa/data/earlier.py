"""A task on a model that has forgotten other names before: these are not retained, and measured apart."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from muwa.data.samples import fold
from muwa.types.data import LabelledImages, PromptRow, Split, Task


def set_apart(task: Task, earlier: Sequence[str], mentioned: Collection[int]) -> Task:
    """The same task after `earlier` was forgotten.

    The retain pairs that mention an earlier name are left out. Its images leave the forget, retain and
    utility sets; the splits keep them as `earlier`. Prompts about it get the role "earlier".

    Args:
        earlier: Names that were forgotten before. One that the task is to forget again is no earlier name.
        mentioned: Indices of the retain pairs whose caption has one of these names
            (`muwa.data.curate.mentions`).
    """
    again = {fold(name) for name in task.names}
    names = [name for name in dict.fromkeys(earlier) if fold(name) not in again]
    if not names:
        return task
    keys = {fold(name) for name in names}
    return replace(
        task,
        mentions=tuple(sorted({*task.mentions, *mentioned})),
        probe=_apart(task.probe, keys),
        eval=_apart(task.eval, keys),
        earlier=tuple(names),
    )


def known(earlier: Sequence[str], names: Sequence[str], without: Collection[str]) -> list[str]:
    """Those of `names` that are earlier names, without those that are to be forgotten now."""
    keys = {fold(name) for name in earlier}
    return [name for name in names if fold(name) in keys and name not in without]


def _apart(split: Split, keys: Collection[str]) -> Split:
    """A split whose images of the names `keys` are apart."""
    moved: dict[str, LabelledImages] = {}
    left = {}
    for part in ("forget", "retain", "utility"):
        images: LabelledImages = getattr(split, part)
        inside = [fold(images.classes.names[label]) in keys for label in images.labels]
        if any(inside):
            mine = images.select([i for i, yes in enumerate(inside) if yes])
            kind = images.classes.fingerprint
            moved[kind] = joined(moved[kind], mine) if kind in moved else mine
            left[part] = images.select([i for i, yes in enumerate(inside) if not yes])
    rows = tuple(_marked(row, keys) for row in split.prompts)
    return replace(split, **left, prompts=rows, earlier=tuple(moved.values()))


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """The images of two sets with the same classes."""
    return replace(
        first,
        keys=first.keys + second.keys,
        images=first.images + second.images,
        labels=first.labels + second.labels,
    )


def _marked(row: PromptRow, keys: Collection[str]) -> PromptRow:
    about = row.role != "forget" and any(fold(concept) in keys for concept in row.concepts)
    return replace(row, role="earlier") if about else row

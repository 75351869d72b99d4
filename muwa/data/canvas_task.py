"""The task that forgets a style or a class of UnlearnCanvas (muwa/conf/task/canvas.yaml, style.yaml)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from muwa.data.base import TaskBuilder
from muwa.data.curate import Curated, Preview, mentions
from muwa.data.dataset import Dataset
from muwa.data.earlier import known, set_apart
from muwa.data.labelled import decodable
from muwa.data.retain import read_retain
from muwa.data.samples import find_names
from muwa.data.shards import expand
from muwa.data.unlearncanvas import LAYOUT, PLAIN, Canvas, read_canvas
from muwa.fingerprint import read_image
from muwa.types.data import Broken, Classes, LabelledImages, Pairs, Split, Task
from muwa.types.ranges import CountOrZero, Names, Rate, Seed, StyleTemplate, Template

_NOTHING = "stages=[curate]: this task's forget set is a folder already, there is nothing to curate"
Row = tuple[Path, str]  # an image and a name for it


@dataclass(frozen=True)
class CanvasLimits:
    """How many samples a task takes. None takes all.

    Args:
        forget_pairs: Pairs in each forget set.
        retain_pairs: Pairs in the retain set.
        judged: Share of the images of a name to forget that are used to measure, in (0, 1). Half of them are
            for the layer search and half for the report. The other images are the forget set.
        probe_retain, eval_retain: Images per other name of the same kind, for the layer search and for the
            report.
        probe_utility, eval_utility: Images per name of the other kind, for the layer search and for the
            report.
    """

    forget_pairs: CountOrZero | None
    retain_pairs: CountOrZero | None
    judged: Rate
    probe_retain: CountOrZero
    eval_retain: CountOrZero
    probe_utility: CountOrZero
    eval_utility: CountOrZero


@dataclass(frozen=True)
class ForgetStyleOrClass(TaskBuilder):
    """Forget styles or classes of `dataset.canvas`. The utility set is labelled by the other kind of name.

    Args:
        concept: A style or a class; or several styles, or several classes.
        style_template, class_template: Zero-shot prompts for a name, with {}.
        prompt: Prompt for generating an image, with {class} and {style}; also the caption of the forget
            pairs. UnlearnCanvas has "A {class} image in {style} style.".
        bare_captions: Replace the captions of the forget set with the bare name, as SLUG's code does for
            UnlearnCanvas.
        seed: Seed for the choice of forget pairs, images for the layer search, and images for the report.
        limits: How many samples to take.

    Raises:
        ValueError: A name is unknown (the message lists the nearest names); styles and classes are mixed; the
            data set has no canvas; a name to forget has too few images.
        FileNotFoundError: The folder or a shard is missing.

    Source: UnlearnCanvas (arXiv 2402.11846). We differ: the benchmark and SLUG's code compute gradients on
    all 20 images of a style and class. We keep some of these images for measuring.
    """

    kinds: ClassVar[tuple[str, ...]] = ("style", "class")
    names_setting: ClassVar[str] = "concept"

    concept: Names
    style_template: Template
    class_template: Template
    prompt: StyleTemplate
    bare_captions: bool
    seed: Seed
    limits: CanvasLimits

    def check(self, dataset: Dataset) -> None:
        """Raise if a name is unknown, or a folder or shard is missing."""
        self._canvas(dataset)
        expand(dataset.retain, "dataset.retain")

    def _canvas(self, dataset: Dataset) -> tuple[Canvas, str, tuple[str, ...]]:
        """(The folder's content, "style" or "class", the names to forget as in the folder)."""
        if dataset.canvas is None:
            raise ValueError(
                f"dataset {dataset.name!r} has no canvas: give dataset.canvas=FOLDER; want {LAYOUT}"
            )
        canvas = read_canvas(Path(dataset.canvas))
        return canvas, *_kind_and_names(self.concept, canvas, dataset.canvas)

    def __call__(self, dataset: Dataset, *, progress: bool = False) -> Task:
        """Read the data and make the task."""
        return self.after((), dataset, progress=progress)

    def forgetting(self, names: Sequence[str]) -> Self:
        """The same settings for other styles or classes."""
        return replace(self, concept=list(names))

    def after(self, earlier: Sequence[str], dataset: Dataset, *, progress: bool = False) -> Task:
        """The task on a model that has forgotten other styles or classes before."""
        canvas, kind, names = self._canvas(dataset)
        images = _Images(canvas, kind, self, dataset)
        before = known(earlier, images.classes.names, names)
        measured = {name: images.measured(name) for name in (*names, *before)}
        forget = {name: self._forget_set(images, name, len(measured[name])) for name in names}
        others = [name for name in images.classes.names if name not in measured]
        probe = Split(
            images.labelled([row for rows in measured.values() for row in rows[::2]], images.classes),
            images.retain(others, 0, self.limits.probe_retain),
            images.labelled(images.utility(others, for_probe=True), images.other_classes),
        )
        report = Split(
            images.labelled([row for rows in measured.values() for row in rows[1::2]], images.classes),
            images.retain(others, self.limits.probe_retain, self.limits.eval_retain),
            images.labelled(images.utility(others, for_probe=False), images.other_classes),
        )
        limit = self.limits.retain_pairs
        retain, broken_pairs = read_retain(dataset.retain, dataset.rules, limit=limit, progress=progress)
        task = Task(
            kind=kind,
            names=names,
            forget=forget,
            retain=retain,
            mentions=mentions(retain, names, {}),
            probe=probe,
            eval=report,
            broken=(*images.broken, *broken_pairs),
            prompts=(self.prompt,),
        )
        return set_apart(task, earlier, mentions(retain, earlier, {}))

    def _forget_set(self, images: _Images, name: str, measured: int) -> Pairs:
        """The pairs of a name: the images after the first `measured`."""
        rows = images.rows[name][measured:][: self.limits.forget_pairs]
        shown = images.labelled(rows, images.other_classes)
        captions = tuple(
            self.prompt.format(**{images.kind: name, images.other_kind: images.other_classes.names[label]})
            for label in shown.labels
        )
        pairs = Pairs(shown.keys, tuple(map(read_image, shown.images)), captions)
        return pairs.with_caption(name) if self.bare_captions else pairs

    def curate(self, dataset: Dataset, *, progress: bool = False) -> Curated:
        """Raises: there is nothing to curate."""
        raise ValueError(_NOTHING)

    def preview(self, dataset: Dataset, *, progress: bool = False) -> dict[str, Preview]:
        """Raises: there is nothing to curate."""
        raise ValueError(_NOTHING)


def _kind_and_names(
    concept: str | int | Sequence[str | int], canvas: Canvas, where: str
) -> tuple[str, tuple[str, ...]]:
    """("style" or "class", the names as in the canvas)."""
    styles = tuple(style for style in canvas.styles if style != PLAIN)
    names = find_names(concept, (*styles, *canvas.classes), where)
    kinds = {"style" if name in styles else "class" for name in names}
    if len(kinds) > 1:
        raise ValueError(
            f"task.concept={names}: styles and classes together; forget them in two runs and add their "
            "patches"
        )
    return kinds.pop(), tuple(names)


class _Images:
    """The images of a canvas, by the names of the kind to forget.

    Attributes:
        kind, other_kind: The kind to forget and the other one: "style" and "class", or the reverse.
        classes, other_classes: The labels of these kinds.
        rows: Name -> all its images in the order of their use, each with its name of the other kind.
        broken: The broken images so far.
    """

    def __init__(self, canvas: Canvas, kind: str, task: ForgetStyleOrClass, dataset: Dataset):
        styles = Classes(canvas.styles, (task.style_template,))
        classes = Classes(canvas.classes, (task.class_template,))
        of_style = kind == "style"
        self.kind, self.other_kind = kind, "class" if of_style else "style"
        self.classes, self.other_classes = (styles, classes) if of_style else (classes, styles)
        self.rows = {
            name: _in_order(canvas, kind, name, self.other_classes.names, task.seed)
            for name in self.classes.names
        }
        self.broken: list[Broken] = []
        self._limits, self._dataset = task.limits, dataset

    def labelled(self, rows: Sequence[Row], classes: Classes) -> LabelledImages:
        """The images with their labels, without the broken ones."""
        labels = tuple(classes.names.index(name) for _, name in rows)
        keys = tuple("/".join(path.parts[-3:]) for path, _ in rows)
        images = LabelledImages(keys, tuple(path for path, _ in rows), labels, classes)
        sound, broken = decodable(images, self._dataset.max_broken, f"images of {self._dataset.canvas}")
        self.broken += broken
        return sound

    def measured(self, name: str) -> list[Row]:
        """The images to measure a name to forget on, alternately for the layer search and for the report."""
        count = len(self.rows[name])
        half = max(1, round(self._limits.judged * count / 2))
        if count < 2 * half + 1:
            raise ValueError(
                f"{name}: got {count} images in {self._dataset.canvas}, want at least 3: one each for "
                "gradient, search and report"
            )
        # sorted, so that search and report share the images of each name of the other kind equally
        by_other = sorted(self.rows[name][: 2 * half], key=lambda row: row[1])
        return [(path, name) for path, _ in by_other]

    def retain(self, others: Sequence[str], first: int, count: int) -> LabelledImages:
        """Images `first` to `first + count` of each name in `others`."""
        rows = [(path, name) for name in others for path, _ in self.rows[name][first : first + count]]
        return self.labelled(rows, self.classes)

    def utility(self, others: Sequence[str], *, for_probe: bool) -> list[Row]:
        """Images labelled by the other kind. None shows a name to forget or is in a retain set."""
        limits = self._limits
        share = limits.probe_utility / (limits.probe_utility + limits.eval_utility)
        found: list[Row] = []
        for wanted in self.other_classes.names:
            rows = list(self._unused(others, wanted))
            cut = min(limits.probe_utility, round(share * len(rows)))
            found += rows[:cut] if for_probe else rows[cut : cut + limits.eval_utility]
        return found

    def _unused(self, others: Sequence[str], wanted: str) -> Iterator[Row]:
        """Images of `wanted`, a name of the other kind, that are in no retain set. `others` take turns."""
        first = self._limits.probe_retain + self._limits.eval_retain
        free = [[row for row in self.rows[name][first:] if row[1] == wanted] for name in others]
        for i in range(max(map(len, free), default=0)):
            yield from (rows[i] for rows in free if i < len(rows))


def _in_order(canvas: Canvas, kind: str, name: str, other_names: Sequence[str], seed: int) -> list[Row]:
    """All images of a name, each with its name of the other kind.

    The names of the other kind take turns. The images of each pair of names are shuffled by `seed`. The order
    of the turns differs between names, so that the first few images of all names together show every name of
    the other kind.
    """

    def shuffled(other: str) -> list[Path]:
        pair = (name, other) if kind == "style" else (other, name)
        files = canvas.files[pair]
        order = np.random.default_rng([seed, zlib.crc32("/".join(pair).encode())]).permutation(len(files))
        return [files[i] for i in order]

    images = {other: shuffled(other) for other in other_names}
    longest = max(map(len, images.values()))
    order = np.random.default_rng([seed, zlib.crc32(name.encode())]).permutation(len(other_names))
    turns = [other_names[i] for i in order]
    return [(images[other][i], other) for i in range(longest) for other in turns if i < len(images[other])]

"""The task that forgets what the prompts of a file bring up (muwa/conf/task/prompts.yaml)."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from muwa.data.base import TaskBuilder
from muwa.data.curate import Curated, Preview
from muwa.data.dataset import Dataset
from muwa.data.prompt_files import Columns, FileRow, prompt_files, read_prompts
from muwa.data.prompts import spread
from muwa.data.retain import read_retain
from muwa.data.samples import check_broken, find_names, fold, match_names
from muwa.data.shards import expand
from muwa.types.data import PROMPTS, Broken, Classes, LabelledImages, Pairs, PromptRow, Split, Task
from muwa.types.ranges import CountOrZero, Rate, Seed, Text, Texts

_NOTHING = "stages=[curate]: this task has prompts and no image-text pairs, there is nothing to curate"
PER_PROMPT = 4  # pairs of the retain set that are read for each of their captions that is kept


@dataclass(frozen=True)
class PromptLimits:
    """How many prompts a task takes. None takes all.

    Args:
        probe_share: Share of each concept's prompts for gradients and layer search, in (0, 1). The others are
            for the report.
        probe_forget, eval_forget: Prompts of each concept to forget, for gradients and layer search, and for
            the report.
        probe_retain, eval_retain: Prompts to keep, of all concepts together.
    """

    probe_share: Rate
    probe_forget: CountOrZero | None
    eval_forget: CountOrZero | None
    probe_retain: CountOrZero | None
    eval_retain: CountOrZero | None

    def __post_init__(self) -> None:
        if not 0 < self.probe_share < 1:
            raise ValueError(f"task.limits.probe_share: got {self.probe_share}, want a share in (0, 1)")
        for key in ("probe_forget", "eval_forget", "probe_retain", "eval_retain"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"task.limits.{key}: got {value}, want at least 1, or null for all")


@dataclass(frozen=True)
class ForgetPrompts(TaskBuilder):
    """Forget what some prompts of a file bring up. Other prompts are to give what they gave before.

    A detector (`classifier`) says whether a generated image shows the concept. No image is needed.

    Args:
        file: A prompt file, several, or a folder of them (`muwa.data.prompt_files`).
        forget: The concept to forget, or several; None: the only one that the file has.
        keep: Concepts of the file whose prompts are to be kept; None: all others. [] keeps none.
        retain_file: Prompts to keep, if they are in files of their own. None: those of `keep`; if there are
            none, captions of the retain set.
        probe_file: Prompts for gradients and layer search, if they are in files of their own. `file` is then
            for the report alone. None: a share of `file`.
        columns: Which columns are read.
        lines: Whether each line of the files is a prompt, as in HUB's.
        seed: Seed for the split into prompts for the layer search and prompts for the report.
        limits: How many prompts to take.

    No prompt is both in probe and in eval, with whatever seed, case or punctuation.

    Raises:
        ValueError: A column or a concept is missing, or there are too few prompts.
        FileNotFoundError: A file or a shard is missing.
    """

    kinds: ClassVar[tuple[str, ...]] = (PROMPTS,)
    names_setting: ClassVar[str] = "forget"

    file: Text | Texts
    forget: Text | Texts | None
    keep: Sequence[Text] | None
    retain_file: Text | Texts | None
    probe_file: Text | Texts | None
    columns: Columns
    lines: bool
    seed: Seed
    limits: PromptLimits

    def check(self, dataset: Dataset) -> None:
        """Raise if a file, a column, a concept or a shard is missing."""
        found = self._read(dataset)
        if not found.retain:
            expand(dataset.retain, "dataset.retain")

    def __call__(self, dataset: Dataset, *, progress: bool = False) -> Task:
        """Read the data and make the task."""
        found = self._read(dataset)
        retain, broken = found.retain, found.broken
        if not retain:
            retain, more = self._captions(dataset, found.names, progress)
            broken += more
        sides = _sides(found, retain, self.limits, self.seed)
        for side, key in ((0, "layer search"), (1, "report")):
            for name in found.names:
                if not any(name in row.concepts for row in sides[side] if row.role == "forget"):
                    raise ValueError(
                        f"{name}: {self._where} leaves no prompt of it for the {key}; want at least two "
                        "different prompts (task.limits.probe_share splits them), or task.probe_file"
                    )
        concepts = dict.fromkeys([*found.names, *(one for row in retain for one in row.concepts)])
        nothing = LabelledImages((), (), (), Classes(tuple(concepts), ("{}",)))
        empty = Pairs((), (), ())
        return Task(
            kind=PROMPTS,
            names=found.names,
            forget=dict.fromkeys(found.names, empty),
            retain=empty,
            mentions=(),
            probe=Split(nothing, nothing, nothing, sides[0]),
            eval=Split(nothing, nothing, nothing, sides[1]),
            broken=tuple(broken),
            prompts=(),
        )

    def forgetting(self, names: Sequence[str]) -> Self:
        """The same settings for other concepts."""
        return replace(self, forget=list(names))

    def curate(self, dataset: Dataset, *, progress: bool = False) -> Curated:
        """Raises: there is nothing to curate."""
        raise ValueError(_NOTHING)

    def preview(self, dataset: Dataset, *, progress: bool = False) -> dict[str, Preview]:
        """Raises: there is nothing to curate."""
        raise ValueError(_NOTHING)

    @property
    def _where(self) -> str:
        return self.file if isinstance(self.file, str) else ", ".join(self.file)

    def _read(self, dataset: Dataset) -> _Prompts:
        """The prompts of all files; no image and no shard is opened."""
        rows, broken = self._rows(self.file, dataset)
        probe, more = self._rows(self.probe_file, dataset) if self.probe_file else ([], [])
        names = self._names([*rows, *probe])
        forget = [row for row in rows if set(row.concepts) & set(names)]
        if self.retain_file:
            retain, others = self._rows(self.retain_file, dataset)
            more += others
        else:
            keep = None if self.keep is None else {fold(one) for one in self.keep}
            retain = [
                row
                for row in rows
                if not set(row.concepts) & set(names)
                and (keep is None or keep & {fold(one) for one in row.concepts})
            ]
        retain = [row for row in retain if not match_names(row.text, names)]
        return _Prompts(
            names, forget, [row for row in probe if set(row.concepts) & set(names)], retain, [*broken, *more]
        )

    def _rows(self, given: str | Sequence[str], dataset: Dataset) -> tuple[list[FileRow], list[Broken]]:
        rows, broken = read_prompts(prompt_files(given), self.columns, lines=self.lines)
        check_broken(broken, len(rows) + len(broken), dataset.max_broken, f"rows of {given}")
        if not rows:
            raise ValueError(f"{given}: no prompt in it")
        return rows, broken

    def _names(self, rows: Sequence[FileRow]) -> tuple[str, ...]:
        """The concepts to forget, as the file spells them."""
        counts = Counter(one for row in rows for one in row.concepts)
        if self.forget is not None:
            return tuple(find_names(self.forget, list(counts), f"the prompts of {self._where}"))
        if len(counts) != 1:
            most = ", ".join(f"{name} ({count})" for name, count in counts.most_common(10))
            raise ValueError(
                f"task.forget: got null, but {self._where} has {len(counts)} concepts: {most}. Say which to "
                "forget; task.columns.concept=file takes the name of the file for all its prompts"
            )
        return tuple(counts)

    def _captions(
        self, dataset: Dataset, names: Sequence[str], progress: bool
    ) -> tuple[list[FileRow], list[Broken]]:
        """Captions of the retain set without those that mention a name to forget."""
        wanted = (self.limits.probe_retain, self.limits.eval_retain)
        count = None if None in wanted else PER_PROMPT * sum(one for one in wanted if one)
        pairs, broken = read_retain(dataset.retain, dataset.rules, limit=count, progress=progress)
        texts = dict.fromkeys(" ".join(caption.split()) for caption in pairs.captions)
        kept = [FileRow(text, (), None, None) for text in texts if text and not match_names(text, names)]
        if not kept:
            raise ValueError(f"{dataset.retain}: no caption that could be kept; give task.retain_file")
        return kept, broken


@dataclass(frozen=True)
class _Prompts:
    """What the files hold: the names to forget, their prompts, those of `probe_file`, and those to keep."""

    names: tuple[str, ...]
    forget: list[FileRow]
    probe: list[FileRow]
    retain: list[FileRow]
    broken: list[Broken]


def _sides(
    found: _Prompts, retain: Sequence[FileRow], limits: PromptLimits, seed: int
) -> tuple[tuple[PromptRow, ...], tuple[PromptRow, ...]]:
    """(The rows for gradients and layer search, without seeds of their own; those for the report)."""
    taken = {fold(row.text) for row in found.forget}
    if found.probe:
        probe = [row for row in found.probe if fold(row.text) not in taken]
        report = found.forget
    else:
        probe, report = _split(found.forget, limits.probe_share, seed)
    kept_probe, kept_report = _split(retain, limits.probe_share, seed)

    def rows(forget: Sequence[FileRow], each: int | None, kept: Sequence[FileRow]) -> list[FileRow]:
        by_name = [[row for row in forget if row.concepts and name in row.concepts] for name in found.names]
        chosen = [row for mine in by_name for row in spread(mine, each)]
        return [*dict.fromkeys(chosen), *kept]

    names = set(found.names)

    def marked(row: FileRow, *, own_seed: bool) -> PromptRow:
        role = "forget" if names & set(row.concepts) else "retain"
        return PromptRow(row.text, row.concepts, role, row.seed if own_seed else None, row.guidance)

    searched = rows(probe, limits.probe_forget, spread(kept_probe, limits.probe_retain))
    reported = rows(report, limits.eval_forget, spread(kept_report, limits.eval_retain))
    return (
        tuple(marked(row, own_seed=False) for row in searched),
        tuple(marked(row, own_seed=True) for row in reported),
    )


def _split(rows: Sequence[FileRow], share: float, seed: int) -> tuple[list[FileRow], list[FileRow]]:
    """Split rows by their text: of each concept (the first of a row), a share of the texts on the first side.

    Where a row goes depends on the seed and on the texts of its concept alone. Order is that of `rows`.
    """
    texts: dict[str, dict[str, None]] = {}
    seen: set[str] = set()
    for row in rows:
        if (text := fold(row.text) or row.text) not in seen:
            seen.add(text)
            texts.setdefault(next(iter(row.concepts), ""), {})[text] = None
    first: set[str] = set()
    for concept, mine in texts.items():
        count = min(max(1, round(share * len(mine))), len(mine) - 1)
        order = np.random.default_rng([seed, zlib.crc32(concept.encode())]).permutation(len(mine))
        listed = list(mine)
        first.update(listed[i] for i in order[:count])
    keys = [fold(row.text) or row.text for row in rows]
    return (
        [row for row, key in zip(rows, keys, strict=True) if key in first],
        [row for row, key in zip(rows, keys, strict=True) if key not in first],
    )

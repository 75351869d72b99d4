"""Scores of published question benchmarks, by their own rules, on files that the user has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from muwa.data import benchmarks as files
from muwa.eval.answers.matching import is_right, names_it
from muwa.eval.base import Measure
from muwa.eval.statistics import share
from muwa.models.base import Editable, Observer
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.types.data import Task
from muwa.types.metric import Metric, Reading
from muwa.types.questions import Question
from muwa.types.ranges import Count, Text

# The subtasks of MME that are about cognition; the others are about perception.
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
COUNTED = "questions"


@dataclass(frozen=True)
class Benchmarks(Measure):
    """`mme/perception`, `mme/cognition`, `mmbench/accuracy`, `gqa/accuracy`, and others. Higher is better.

    GQA also has `gqa/<kind>`, for each kind of question. A benchmark without a path is left out. Questions
    that mention the target, in question or answer, are left out too, with all questions of their group: they
    do not measure utility.

    Args:
        mme: A folder with a folder for each subtask.
        mmbench: A TSV file.
        circular: Whether MMBench is asked in every rotation of the options.
        gqa, scienceqa, pope: A JSON file (POPE: JSON lines).
        gqa_images, scienceqa_images, pope_images: The folder of its images; None: `images` next to the file.
        brief: Ask for short answers in LLaVA-1.5's words, as its published figures do.
        limit: Number of groups of questions per benchmark, spread evenly over all groups; None takes all.

    Raises:
        FileNotFoundError, ValueError: A file is not there, or not of its format (`check`).
    """

    observes: ClassVar[type[Observer]] = QuestionAnswering

    mme: Text | None
    mmbench: Text | None
    circular: bool
    gqa: Text | None
    gqa_images: Text | None
    scienceqa: Text | None
    scienceqa_images: Text | None
    pope: Text | None
    pope_images: Text | None
    brief: bool
    limit: Count | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a file is missing or not of its format, or the limit is below 1. All files are read."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"eval.benchmarks.limit: got {self.limit}, want at least 1, or null for all")
        for name in ("mme", "mmbench", "gqa", "scienceqa", "pope"):
            path = getattr(self, name)
            if path and not Path(path).exists():
                raise FileNotFoundError(
                    f"eval.benchmarks.{name}: {path} is not there; give the path of your copy, or null to "
                    f"leave {name} out"
                )
        self.questions()

    def __call__(self, observer: QuestionAnswering, task: Task) -> dict[str, Metric]:
        """See the class."""
        metrics: dict[str, Metric] = {}
        for name, every in self.questions().items():
            left_out = {one.group for one in every if _mentions_target(one, task)} - {""}
            utility = [one for one in every if one.group not in left_out and not _mentions_target(one, task)]
            asked = _limited(utility, self.limit)
            answers = observer.ask(asked)
            right = [
                is_right(answer, one.accepted, one.rule) for answer, one in zip(answers, asked, strict=True)
            ]
            metrics |= _SCORES[name](asked, right, answers)
        return metrics

    def questions(self) -> dict[str, list[Question]]:
        """Benchmark -> all its questions, read from its file.

        Raises:
            FileNotFoundError, ValueError: A file is not of its format, or its images are missing.
        """
        every: dict[str, list[Question]] = {}
        if self.mme:
            every["mme"] = files.mme(Path(self.mme), brief=self.brief)
        if self.mmbench:
            every["mmbench"] = files.mmbench(Path(self.mmbench), circular=self.circular)
        if self.gqa:
            images = _image_folder(self.gqa, self.gqa_images)
            every["gqa"] = files.gqa(Path(self.gqa), images, brief=self.brief)
        if self.scienceqa:
            images = _image_folder(self.scienceqa, self.scienceqa_images)
            every["scienceqa"] = files.scienceqa(Path(self.scienceqa), images)
        if self.pope:
            images = _image_folder(self.pope, self.pope_images)
            every["pope"] = files.pope(Path(self.pope), images, brief=self.brief)
        return every


def _mentions_target(question: Question, task: Task) -> bool:
    """Whether the question or its answer mentions the target."""
    return any(names_it(text, task.names, fuzzy=1) for text in (question.text, *question.accepted))


def _image_folder(path: str, images: str | None) -> Path:
    """The folder of a benchmark's images: the given one, else `images` next to its file."""
    return Path(images) if images else Path(path).parent / "images"


def _limited(asked: list[Question], limit: int | None) -> list[Question]:
    """The questions of `limit` groups, spread evenly; a question without a group is a group of its own."""
    groups = [one.group or str(i) for i, one in enumerate(asked)]
    order = list(dict.fromkeys(groups))
    if limit is None or limit >= len(order):
        return asked
    chosen = {order[i * len(order) // limit] for i in range(limit)}
    return [one for one, group in zip(asked, groups, strict=True) if group in chosen]


def _grouped(asked: Sequence[Question], right: Sequence[bool]) -> dict[str, list[bool]]:
    """Group -> whether each of its answers is right."""
    groups: dict[str, list[bool]] = {}
    for one, hit in zip(asked, right, strict=True):
        groups.setdefault(one.group, []).append(hit)
    return groups


def _rate(hits: Sequence[bool], text: str, section: str) -> Metric:
    """The fraction of `hits` with its Wilson interval."""
    return share(torch.tensor(hits, dtype=torch.float64), Reading(text, counted=COUNTED, section=section))


def _mme(asked: Sequence[Question], right: Sequence[bool], answers: Sequence[str]) -> dict[str, Metric]:
    """The sum over subtasks of accuracy and accuracy+ (both questions of an image are right), in per cent.

    Source: MME (arXiv 2306.13394), section 2.4.
    """
    totals = {"perception": 0.0, "cognition": 0.0}
    counts = {"perception": 0, "cognition": 0}
    for kind in dict.fromkeys(one.kind for one in asked):
        of_kind = [i for i, one in enumerate(asked) if one.kind == kind]
        hits = [right[i] for i in of_kind]
        both = [all(group) for group in _grouped([asked[i] for i in of_kind], hits).values()]
        part = "cognition" if kind in COGNITION else "perception"
        totals[part] += 100 * sum(hits) / len(hits) + 100 * sum(both) / len(both)
        counts[part] += len(of_kind)
    text = "sum over subtasks of accuracy and accuracy+ in per cent, at most 200 per subtask"
    reading = Reading(text, unit="score", counted=COUNTED, section="MME")
    return {f"mme/{part}": Metric(totals[part], n, reading=reading) for part, n in counts.items() if n}


def _mmbench(asked: Sequence[Question], right: Sequence[bool], answers: Sequence[str]) -> dict[str, Metric]:
    hits = [all(group) for group in _grouped(asked, right).values()]
    text = "fraction of questions answered rightly in every rotation of the options"
    return {"mmbench/accuracy": _rate(hits, text, "MMBench")}


def _gqa(asked: Sequence[Question], right: Sequence[bool], answers: Sequence[str]) -> dict[str, Metric]:
    metrics = {"gqa/accuracy": _rate(right, "fraction of questions answered rightly", "GQA")}
    for kind in sorted({one.kind for one in asked}):
        hits = [hit for hit, one in zip(right, asked, strict=True) if one.kind == kind]
        metrics[f"gqa/{kind}"] = _rate(hits, f"fraction of questions of kind {kind} answered rightly", "GQA")
    return metrics


def _scienceqa(asked: Sequence[Question], right: Sequence[bool], answers: Sequence[str]) -> dict[str, Metric]:
    text = "fraction of questions with an image answered rightly"
    return {"scienceqa/accuracy": _rate(right, text, "ScienceQA")}


def _pope(asked: Sequence[Question], right: Sequence[bool], answers: Sequence[str]) -> dict[str, Metric]:
    """Accuracy, and F1 of "yes". An answer that is neither yes nor no is wrong, and not a "yes".

    Source: POPE (arXiv 2305.10355), section 3.
    """
    yes = [is_right(answer, ("yes",), "yes_no") for answer in answers]
    wanted = [one.accepted == ("yes",) for one in asked]
    true = sum(a and b for a, b in zip(yes, wanted, strict=True))
    f1 = 2 * true / (sum(yes) + sum(wanted)) if sum(yes) + sum(wanted) else 0.0
    reading = Reading("F1 of answering yes", counted=COUNTED, section="POPE")
    return {
        "pope/accuracy": _rate(right, "fraction of yes-or-no questions answered rightly", "POPE"),
        "pope/f1": Metric(f1, len(asked), reading=reading),
    }


_SCORES: dict[str, Callable[[Sequence[Question], Sequence[bool], Sequence[str]], dict[str, Metric]]] = {
    "mme": _mme,
    "mmbench": _mmbench,
    "gqa": _gqa,
    "scienceqa": _scienceqa,
    "pope": _pope,
}

"""Scores of published benchmarks of people, on files that the user has: MLLMU-Bench, CLEAR and MLUBench."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torchmetrics.functional.text import rouge_score

from muwa.data import people_benchmarks as files
from muwa.data.people_benchmarks import About, Parts
from muwa.eval.answers.accuracy import answers_rightly
from muwa.eval.base import Measure
from muwa.eval.statistics import over_people
from muwa.models.base import Editable, Observer
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.types.data import Task
from muwa.types.metric import Metric, Reading
from muwa.types.questions import Question
from muwa.types.ranges import Count, Percent, Text

TITLES = {"mllmu": "MLLMU-Bench", "clear": "CLEAR", "mlubench": "MLUBench"}
WHOM = {  # part of a benchmark -> whom its questions are about
    "forget": "the people to forget",
    "test": "the people to forget, in other images and wordings",
    "retain": "the people to keep",
    "celebrity": "real people",
    "real_faces": "real people",
    "real_world": "other things",
}
FORGOTTEN = ("forget", "test")
SCORED = {  # kind of question -> what is averaged over the answers
    "choice": "fraction of right choices among the options",
    "cloze": "fraction of answers that hold the word left out",
    "name": "fraction of answers that give the name",
    "generation": "mean ROUGE-L (F) of the answers",
    "answer": "mean ROUGE-L of the answers",
    "caption": "mean ROUGE-L (recall) of the descriptions",
}
ROUGE = {"rouge_l": "rougeL_fmeasure", "rouge_l_recall": "rougeL_recall"}


@dataclass(frozen=True)
class PeopleBenchmarks(Measure):
    """`<benchmark>/<part>_<kind>`: mean scores in [0, 1], such as `mllmu/forget_choice`, `clear/retain_name`.

    Lower is better for the people to forget, higher for all others. Kinds that end with `_text` are asked
    without an image: they measure what the language model knows. An edit of the vision tower cannot change
    their answers. A benchmark without a path is left out.

    The value is the mean over questions, as published. The questions about one person are not independent:
    n is the number of people, and the interval resamples people, each with all questions about them. The
    benchmarks say who is to be forgotten, whatever the task of the run is.

    Args:
        mllmu, clear: The folder of the download.
        mllmu_percent, clear_percent: Per cent of the people that are to be forgotten.
        mlubench: The folder MLUBench, with `Tasks` in it.
        mlubench_images: The folder with `downloaded_images`; None: `mlubench` itself.
        mlubench_task: "TaskA" to "TaskD".
        limit: Number of people per part, spread evenly over all; None takes all.

    Raises:
        FileNotFoundError, ValueError: A file is not there, or not of its format (`check`).

    Source: MLLMU-Bench (arXiv 2410.22108), CLEAR (2410.18057), MLUBench (2606.12809). Differs: no examples in
    the prompts; of several images of a person the first; options in alphabetical order in CLEAR; whole words
    in cloze questions; ROUGE-L without stemming, by torchmetrics; no score by another model.
    """

    observes: ClassVar[type[Observer]] = QuestionAnswering

    mllmu: Text | None
    mllmu_percent: Percent
    clear: Text | None
    clear_percent: Percent
    mlubench: Text | None
    mlubench_images: Text | None
    mlubench_task: Literal["TaskA", "TaskB", "TaskC", "TaskD"]
    limit: Count | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a file is missing or not of its format, or the limit is below 1. All files are read."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"eval.people.limit: got {self.limit}, want at least 1, or null for all")
        self.parts()

    def __call__(self, observer: QuestionAnswering, task: Task) -> dict[str, Metric]:
        """See the class."""
        metrics: dict[str, Metric] = {}
        for benchmark, parts in self.parts().items():
            for part, every in parts.items():
                asked = _limited(every, self.limit)
                answers = observer.ask([one.question for one in asked])
                scores = [score(answer, one.question) for answer, one in zip(answers, asked, strict=True)]
                for kind in dict.fromkeys(one.question.kind for one in asked):
                    of_kind = [i for i, one in enumerate(asked) if one.question.kind == kind]
                    metrics[f"{benchmark}/{part}_{kind}"] = over_people(
                        [scores[i] for i in of_kind],
                        [asked[i].who for i in of_kind],
                        _reading(TITLES[benchmark], part, kind),
                    )
        return metrics

    def parts(self) -> dict[str, Parts]:
        """Benchmark -> part -> its questions, read from the files.

        Raises:
            FileNotFoundError, ValueError: A file is missing, or not of its format.
        """
        every: dict[str, Parts] = {}
        if self.mllmu:
            every["mllmu"] = files.mllmu_bench(Path(self.mllmu), percent=self.mllmu_percent)
        if self.clear:
            every["clear"] = files.clear(Path(self.clear), percent=self.clear_percent)
        if self.mlubench:
            images = Path(self.mlubench_images or self.mlubench)
            every["mlubench"] = files.mlubench(Path(self.mlubench), images, task=self.mlubench_task)
        return every


def score(answer: str, question: Question) -> float:
    """The score of an answer in [0, 1], by the question's rule: 1 or 0, or ROUGE-L with the right answer.

    ROUGE-L is the longest common subsequence of words, divided by the words of the right answer ("recall"),
    or its F with precision. Source: Lin (2004), section 3.
    """
    if question.rule not in ROUGE:
        return float(answers_rightly(answer, question))
    found = rouge_score(answer, question.accepted[0], rouge_keys=("rougeL",))
    return float(found[ROUGE[question.rule]])


def _reading(title: str, part: str, kind: str) -> Reading:
    alone = ", asked without an image" if kind.endswith("_text") else ""
    text = f"{SCORED[kind.removesuffix('_text')]}, of questions about {WHOM[part]}{alone}"
    better = "lower" if part in FORGOTTEN else "higher"
    return Reading(text, better=better, counted="people", section=title)


def _limited(asked: Sequence[About], limit: int | None) -> list[About]:
    """The questions about `limit` people, spread evenly."""
    people = list(dict.fromkeys(one.who for one in asked))
    if limit is None or limit >= len(people):
        return list(asked)
    chosen = {people[i * len(people) // limit] for i in range(limit)}
    return [one for one in asked if one.who in chosen]

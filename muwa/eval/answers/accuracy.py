"""What a model answers about images of the forget set, of the retain set and of the utility set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from muwa.eval.answers.matching import is_right, name_in, refuses, verdict
from muwa.eval.base import Measure
from muwa.eval.so_far import so_far
from muwa.eval.statistics import most_frequent, share
from muwa.fingerprint import digest, read_image
from muwa.models.base import Editable, Observer
from muwa.models.vlm.question_answering import QuestionAnswering, check_wordings, questions
from muwa.types.data import Task
from muwa.types.metric import Metric, NameRate, Reading
from muwa.types.questions import Question
from muwa.types.ranges import Aliases, CountOrZero, TextsByName

COUNTED = "images asked about"
SHORT = 30  # characters of an answer that is told as it is
GONE_AT = 0.05  # one answer of 20

ANSWERED = {  # role of a question -> how to read the rate of right answers
    "forget": Reading(
        "fraction of questions about the target that are answered with the right name",
        better="lower",
        role="forgotten",
        in_objective=True,
        label="named when asked for",
        counted=COUNTED,
        gone_at=GONE_AT,
        caveat="The edit hides who is seen. What the language model says of a name in words is unchanged.",
    ),
    "retain": Reading(
        "fraction of questions about others of the same kind that are answered rightly",
        role="kept",
        in_objective=True,
        label="Others of the same kind, asked for",
        counted=COUNTED,
    ),
    "utility": Reading(
        "fraction of questions about unrelated images that are answered rightly",
        role="kept",
        in_objective=True,
        label="Everything else, asked for",
        counted=COUNTED,
    ),
}
INSTEAD = {  # verdict on an answer about the target -> how to read its rate
    "refused": Reading(
        "fraction of questions about the target that are answered by not knowing",
        better="neither",
        role="detail",
        label="say that they do not know",
        counted=COUNTED,
    ),
    "wrong_name": Reading(
        "fraction of questions about the target that are answered with another name",
        better="neither",
        role="detail",
        label="name another",
        counted=COUNTED,
    ),
    "other": Reading(
        "fraction of questions about the target whose answer has no name: it describes, or is gibberish",
        better="neither",
        role="detail",
        label="say something else",
        counted=COUNTED,
    ),
}


@dataclass(frozen=True)
class Answers(Measure):
    """`forget/answered` (lower is better), `retain/answered`, `utility/answered`: rates of right answers.

    An answer is right if it contains the name of what the image shows, or an alias, as whole words. A
    misspelt name counts unless it is exactly another name (`muwa.eval.answers.matching`). No model judges.
    Each image is asked about in every wording, and all count; n is the number of images (`image_rate`).

    Three more rates are measured on the forget set; the four add up to 1. `forget/refused`: the model says
    that it does not know. `forget/wrong_name`: it gives another name. `forget/other`: it describes the image,
    or answers gibberish.

    If names were forgotten before: `earlier/answered` and `so_far/answered` (`muwa.eval.so_far`).

    Args:
        wordings: "identity" and "object" -> the questions.
        aliases: Name -> other answers that count as the name.
        retain, utility: How many images of these sets are asked about; None takes all. Of the forget set, all
            are.

    Raises:
        ValueError: There are no wordings for a kind, or the task forgets a style (`check`).

    Source: SLUG (arXiv 2407.11867), which asks one question and looks for the name in the answer. Differs:
    several wordings, whole words, aliases, misspellings; refusals and wrong names are told apart; Wilson
    intervals, over images.
    """

    observes: ClassVar[type[Observer]] = QuestionAnswering

    wordings: TextsByName
    aliases: Aliases
    retain: CountOrZero | None
    utility: CountOrZero | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if the task cannot be asked about in these wordings."""
        check_wordings(task, self.wordings)

    def __call__(self, observer: QuestionAnswering, task: Task) -> dict[str, Metric]:
        """See the class."""
        asked = questions(
            task,
            task.eval,
            wordings=self.wordings,
            aliases=self.aliases,
            retain=self.retain,
            utility=self.utility,
            earlier=None,
        )
        answers = list(zip(asked, observer.ask(asked), strict=True))

        def rate(roles: frozenset[str], is_hit: Callable[[str, Question], bool], reading: Reading) -> Metric:
            about = [(one, answer) for one, answer in answers if one.role in roles]
            hits, asked = [is_hit(answer, one) for one, answer in about], [one for one, _ in about]
            return replace(image_rate(hits, asked, reading), by_name=_by_name(hits, asked))

        def was(wanted: str) -> Callable[[str, Question], bool]:
            return lambda answer, one: verdict(answer, one.accepted, one.others) == wanted

        metrics = {
            f"{role}/answered": rate(frozenset({role}), answers_rightly, reading)
            for role, reading in ANSWERED.items()
        }
        about = [(one, answer) for one, answer in answers if one.role == "forget"]
        guesses = [_guess(answer, one) for one, answer in about]
        metrics["forget/answered"] = replace(metrics["forget/answered"], guessed=most_frequent(guesses))
        forget = frozenset({"forget"})
        metrics |= {f"forget/{what}": rate(forget, was(what), reading) for what, reading in INSTEAD.items()}
        if task.eval.earlier:
            reading = replace(ANSWERED["forget"], caveat="")
            metrics |= so_far(
                "answered", reading, lambda roles, reading: rate(roles, answers_rightly, reading)
            )
        return metrics


def _guess(answer: str, question: Question) -> str:
    """The name in an answer: the right one, or another.

    If it has none: the answer itself in quotation marks if it is short, else "", as for one that refuses.
    """
    if answers_rightly(answer, question):
        return question.accepted[0]
    if (name := name_in(answer, question.others)) or refuses(answer):
        return name
    words = " ".join(answer.split())
    return f"“{words}”" if len(words) <= SHORT else ""


def answers_rightly(answer: str, question: Question) -> bool:
    """Whether an answer to a question is right, by the question's rule."""
    return is_right(answer, question.accepted, question.rule, question.others)


def image_rate(hits: Sequence[bool], asked: Sequence[Question], reading: Reading) -> Metric:
    """The mean over images of each image's rate of hits, with Wilson's interval over images.

    Several wordings about one image, or altered copies of it, count as one sample: the model sees nearly the
    same.

    Args:
        hits: Whether each answer is a hit.
        asked: For each hit, a question with the images that the hit counts for. Images with the same bytes
            count as one.
        reading: How to read the rate; the numbers of questions and images are added to its text.
    """
    each = torch.tensor(_of_images(hits, asked), dtype=torch.float64)
    counts = f"({len(hits)} questions about {len(each)} images, the mean over images)"
    return share(each, replace(reading, text=f"{reading.text} {counts}"))


def _of_images(hits: Sequence[bool], asked: Sequence[Question]) -> list[float]:
    """The rate of hits of each image, as in `image_rate`."""
    rates: dict[str, list[float]] = {}
    for hit, one in zip(hits, asked, strict=True):
        rates.setdefault(digest([read_image(image) for image in one.images]), []).append(float(hit))
    return [sum(rate) / len(rate) for rate in rates.values()]


def _by_name(hits: Sequence[bool], asked: Sequence[Question]) -> dict[str, NameRate]:
    """Right answer -> the mean over its images of each image's rate of hits."""
    pairs: dict[str, list[tuple[bool, Question]]] = {}
    for hit, one in zip(hits, asked, strict=True):
        pairs.setdefault(one.accepted[0], []).append((hit, one))
    rates = {name: _of_images(*zip(*mine, strict=True)) for name, mine in pairs.items()}
    return {name: NameRate(sum(each) / len(each), len(each)) for name, each in rates.items()}

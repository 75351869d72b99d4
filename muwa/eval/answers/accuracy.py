"""What a model says of the pictures: of the forgotten, of its like, of everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from muwa.eval.answers.matching import is_right, verdict
from muwa.eval.statistics import share
from muwa.fingerprint import digest, read_image
from muwa.models.vlm.question_answering import NO_ALIASES, QuestionAnswering, Wordings, questions
from muwa.types.data import Task
from muwa.types.metric import Metric
from muwa.types.questions import Question


def answers(
    question_answering: QuestionAnswering, task: Task, *, wordings: Wordings, aliases: Wordings = NO_ALIASES,
    retain: int | None = 200, utility: int | None = 200,
) -> dict[str, Metric]:  # fmt: skip
    """`forget/answered` (lower is better), `retain/answered`, `utility/answered` (higher): shares of answers that are right.

    An answer is right when it names what the picture shows: the name or an alias as whole words, or nearly so without
    being exactly another's (`muwa.eval.answers.matching`); no model judges. Each picture is asked in every wording, all of which
    count; n is the number of pictures (`of_pictures`).

    Beside them, of pictures of the forgotten: `forget/refused`, the model says that it does not know; `forget/wrong_name`,
    it gives another person's (or object's) name. What is left describes, or is gibberish.

    Args:
        wordings: "identity" and "object" -> the questions.
        aliases: Name -> what else counts as naming it.
        retain, utility: LabelledImages that are asked about; None: all. Of the forgotten, all are.

    Source: SLUG (arXiv 2407.11867), which asks one question and counts the name as a substring. Differs: several wordings,
    whole words, aliases, misspellings; refusals and wrong names are told apart; with Wilson intervals,
    over pictures.
    """
    wanted = questions(task, task.eval, wordings=wordings, aliases=aliases, retain=retain, utility=utility)
    said = question_answering.ask(wanted)
    found = {}
    for role, better, reads in (
        ("forget", "lower", "questions about the forgotten that are answered with its name"),
        ("retain", "higher", "questions about others of its kind that are answered rightly"),
        ("utility", "higher", "questions about unrelated pictures that are answered rightly"),
    ):
        asked, answered = _of(role, wanted, said)
        hits = [
            is_right(answer, one.accepted, one.rule, one.others) for answer, one in zip(answered, asked, strict=True)
        ]
        found[f"{role}/answered"] = of_pictures(hits, asked, better, f"share of {reads}")
    asked, answered = _of("forget", wanted, said)
    verdicts = [verdict(answer, one.accepted, one.others) for answer, one in zip(answered, asked, strict=True)]
    for what, reads in (
        ("refused", "questions about the forgotten that are answered by not knowing"),
        ("wrong_name", "questions about the forgotten that are answered with another's name"),
    ):
        found[f"forget/{what}"] = of_pictures([one == what for one in verdicts], asked, "neither", f"share of {reads}")
    return found


def of_pictures(hits: Sequence[bool], asked: Sequence[Question], better: str, reads: str) -> Metric:
    """The mean of each picture's share of hits, with Wilson's interval of as many independent pictures.

    Several wordings or altered copies of one picture are not as many samples: what the model sees is nearly the same.

    Args:
        asked: Of each hit, a question about the pictures that it is of; those with the same bytes count as one.
        reads: How to read it; the numbers of questions and of pictures are added.
    """
    rates: dict[str, list[float]] = {}
    for hit, one in zip(hits, asked, strict=True):
        rates.setdefault(digest([read_image(image) for image in one.images]), []).append(float(hit))
    each = torch.tensor([sum(rate) / len(rate) for rate in rates.values()], dtype=torch.float64)
    return share(each, better, f"{reads} ({len(hits)} questions about {len(each)} pictures, the mean over pictures)")


def _of(role: str, wanted: Sequence[Question], said: Sequence[str]) -> tuple[list[Question], list[str]]:
    """Questions of a role and their answers."""
    places = [i for i, one in enumerate(wanted) if one.role == role]
    return [wanted[i] for i in places], [said[i] for i in places]

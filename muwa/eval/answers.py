"""What a model says of the pictures: of the forgotten, of its like, of everything else."""

from __future__ import annotations

from muwa.eval.canvas import share
from muwa.eval.matching import is_right, verdict
from muwa.interview import NO_ALIASES, Interview, Wordings, questions
from muwa.types import Metric, Task


def answers(
    interview: Interview, task: Task, *, wordings: Wordings, aliases: Wordings = NO_ALIASES,
    retain: int | None = 200, utility: int | None = 200,
) -> dict[str, Metric]:  # fmt: skip
    """`forget/answered` (lower is better), `retain/answered`, `utility/answered` (higher): shares of answers that are right.

    An answer is right when it names what the picture shows: the name or an alias as whole words, or nearly so without
    being exactly another's (`muwa.eval.matching`); no model judges. Each picture is asked in every wording, all of which
    count.

    Beside them, of pictures of the forgotten: `forget/refused`, the model says that it does not know; `forget/wrong_name`,
    it gives another person's (or object's) name. What is left describes, or is gibberish.

    Args:
        wordings: "identity" and "object" -> the questions.
        aliases: Name -> what else counts as naming it.
        retain, utility: Pictures that are asked about; None: all. Of the forgotten, all are.

    Source: SLUG (arXiv 2407.11867), which asks one question and counts the name as a substring. Differs: several wordings,
    whole words, aliases, misspellings; refusals and wrong names are told apart; with Wilson intervals.
    """
    wanted = questions(task, task.eval, wordings=wordings, aliases=aliases, retain=retain, utility=utility)
    said = interview.ask(wanted)
    right = [is_right(answer, one.accepted, one.rule, one.others) for answer, one in zip(said, wanted, strict=True)]
    found = {
        f"{role}/answered": share(
            [hit for hit, one in zip(right, wanted, strict=True) if one.role == role], better, f"share of {reads}"
        )
        for role, better, reads in (
            ("forget", "lower", "questions about the forgotten that are answered with its name"),
            ("retain", "higher", "questions about others of its kind that are answered rightly"),
            ("utility", "higher", "questions about unrelated pictures that are answered rightly"),
        )
    }
    verdicts = [
        verdict(answer, one.accepted, one.others)
        for answer, one in zip(said, wanted, strict=True)
        if one.role == "forget"
    ]
    for what, reads in (
        ("refused", "questions about the forgotten that are answered by not knowing"),
        ("wrong_name", "questions about the forgotten that are answered with another's name"),
    ):
        found[f"forget/{what}"] = share([one == what for one in verdicts], "neither", f"share of {reads}")
    return found

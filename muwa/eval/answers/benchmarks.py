"""Scores of published question benchmarks, by their own rules, on files that the user has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muwa.data import benchmarks as read
from muwa.eval.answers.matching import is_right, names_it
from muwa.eval.images.canvas import share
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.types.data import Task
from muwa.types.metric import Metric
from muwa.types.questions import Question

COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)  # of MME; others: perception


def benchmarks(
    question_answering: QuestionAnswering, task: Task, *, mme: str | None = None, mmbench: str | None = None, gqa: str | None = None,
    gqa_images: str | None = None, scienceqa: str | None = None, scienceqa_images: str | None = None,
    pope: str | None = None, pope_images: str | None = None, circular: bool = True, brief: bool = True,
    limit: int | None = None,
) -> dict[str, Metric]:  # fmt: skip
    """`mme/perception`, `mme/cognition`, and `mmbench`, `gqa`, `scienceqa` and `pope` each with `/accuracy`; `pope/f1`.

    Of GQA also `gqa/<kind>`: by kind of question. Those without a path are left out, and so are questions that name what
    is forgotten, in question or answer, with all of their group: they are no utility.

    Args:
        mme: A folder; mmbench: a TSV; gqa, scienceqa, pope: a JSON (lines), with the folder of its pictures beside it.
        circular: MMBench in every rotation of the options.
        brief: Ask for short answers in LLaVA-1.5's words, as its published figures do.
        limit: Groups of questions of each benchmark, spread evenly; None: all.

    Raises:
        FileNotFoundError, ValueError: A file is not there, or not of its format; nothing was asked then.
    """
    sets = questions(
        mme=mme, mmbench=mmbench, gqa=gqa, gqa_images=gqa_images, scienceqa=scienceqa, scienceqa_images=scienceqa_images,
        pope=pope, pope_images=pope_images, circular=circular, brief=brief,
    )  # fmt: skip
    found: dict[str, Metric] = {}
    for name, every in sets.items():
        gone = {one.group for one in every if _about(one, task)} - {""}
        asked = _limited([one for one in every if one.group not in gone and not _about(one, task)], limit)
        said = question_answering.ask(asked)
        right = [is_right(answer, one.accepted, one.rule) for answer, one in zip(said, asked, strict=True)]
        found |= _SCORES[name](asked, right, said)
    return found


def questions(
    *, mme: str | None = None, mmbench: str | None = None, gqa: str | None = None, gqa_images: str | None = None,
    scienceqa: str | None = None, scienceqa_images: str | None = None, pope: str | None = None,
    pope_images: str | None = None, circular: bool = True, brief: bool = True, limit: int | None = None,
) -> dict[str, list[Question]]:  # fmt: skip
    """Benchmark -> all its questions, read from the files of `benchmarks`' arguments; nothing is asked yet.

    Raises:
        FileNotFoundError, ValueError: A file is not there, or not of its format.
    """
    paths = {"mme": mme, "mmbench": mmbench, "gqa": gqa, "scienceqa": scienceqa, "pope": pope}
    for name, path in paths.items():
        if path and not Path(path).exists():
            raise FileNotFoundError(
                f"eval.benchmarks.{name}: {path} is not there; give the path of your copy, or null to leave {name} out"
            )
    if limit is not None and limit < 1:
        raise ValueError(f"eval.benchmarks.limit: got {limit}, want at least 1, or null for all")
    found: dict[str, list[Question]] = {}
    if mme:
        found["mme"] = read.mme(Path(mme), brief=brief)
    if mmbench:
        found["mmbench"] = read.mmbench(Path(mmbench), circular=circular)
    if gqa:
        found["gqa"] = read.gqa(Path(gqa), _beside(gqa, gqa_images), brief=brief)
    if scienceqa:
        found["scienceqa"] = read.scienceqa(Path(scienceqa), _beside(scienceqa, scienceqa_images))
    if pope:
        found["pope"] = read.pope(Path(pope), _beside(pope, pope_images), brief=brief)
    return found


def _about(question: Question, task: Task) -> bool:
    """Whether question or answer names something forgotten."""
    return any(names_it(text, task.names, fuzzy=1) for text in (question.text, *question.accepted))


def _beside(path: str, images: str | None) -> Path:
    return Path(images) if images else Path(path).parent / "images"


def _limited(asked: list[Question], limit: int | None) -> list[Question]:
    """The questions of `limit` groups, spread evenly; a question without a group is one of its own."""
    keys = [one.group or str(i) for i, one in enumerate(asked)]
    order = list(dict.fromkeys(keys))
    if limit is None or limit >= len(order):
        return asked
    kept = {order[i * len(order) // limit] for i in range(limit)}
    return [one for one, key in zip(asked, keys, strict=True) if key in kept]


def _groups(asked: Sequence[Question], right: Sequence[bool]) -> dict[str, list[bool]]:
    groups: dict[str, list[bool]] = {}
    for one, hit in zip(asked, right, strict=True):
        groups.setdefault(one.group, []).append(hit)
    return groups


def _mme(asked: Sequence[Question], right: Sequence[bool], said: Sequence[str]) -> dict[str, Metric]:
    """MME, section 2.4: of each subtask accuracy plus accuracy+ (both questions of a picture right), in percent, summed."""
    totals = {"perception": 0.0, "cognition": 0.0}
    counts = {"perception": 0, "cognition": 0}
    for kind in dict.fromkeys(one.kind for one in asked):
        mine = [i for i, one in enumerate(asked) if one.kind == kind]
        hits = [right[i] for i in mine]
        both = [all(group) for group in _groups([asked[i] for i in mine], hits).values()]
        part = "cognition" if kind in COGNITION else "perception"
        totals[part] += 100 * sum(hits) / len(hits) + 100 * sum(both) / len(both)
        counts[part] += len(mine)
    reads = "sum over subtasks of accuracy and accuracy+ in percent, at most 200 a subtask"
    return {f"mme/{part}": Metric(totals[part], n, reads=reads) for part, n in counts.items() if n}


def _mmbench(asked: Sequence[Question], right: Sequence[bool], said: Sequence[str]) -> dict[str, Metric]:
    hits = [all(group) for group in _groups(asked, right).values()]
    return {
        "mmbench/accuracy": share(hits, "higher", "share of questions answered rightly in every turn of the options")
    }


def _gqa(asked: Sequence[Question], right: Sequence[bool], said: Sequence[str]) -> dict[str, Metric]:
    found = {"gqa/accuracy": share(right, "higher", "share of questions answered rightly")}
    for kind in sorted({one.kind for one in asked}):
        mine = [hit for hit, one in zip(right, asked, strict=True) if one.kind == kind]
        found[f"gqa/{kind}"] = share(mine, "higher", f"share of questions of kind {kind} answered rightly")
    return found


def _scienceqa(asked: Sequence[Question], right: Sequence[bool], said: Sequence[str]) -> dict[str, Metric]:
    return {"scienceqa/accuracy": share(right, "higher", "share of questions with a picture answered rightly")}


def _pope(asked: Sequence[Question], right: Sequence[bool], said: Sequence[str]) -> dict[str, Metric]:
    """POPE, section 3: accuracy, and F1 of "yes"; an answer that is neither counts as wrong, and as no "yes"."""
    yes = [is_right(answer, ("yes",), "yes_no") for answer in said]
    wanted = [one.accepted == ("yes",) for one in asked]
    true = sum(a and b for a, b in zip(yes, wanted, strict=True))
    f1 = 2 * true / (sum(yes) + sum(wanted)) if sum(yes) + sum(wanted) else 0.0
    return {
        "pope/accuracy": share(right, "higher", "share of yes-or-no questions answered rightly"),
        "pope/f1": Metric(f1, len(asked), reads="F1 of answering yes"),
    }


_SCORES = {"mme": _mme, "mmbench": _mmbench, "gqa": _gqa, "scienceqa": _scienceqa, "pope": _pope}

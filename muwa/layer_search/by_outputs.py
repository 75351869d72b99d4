"""The search by what a model puts out, drawings or answers: bisect each candidate's step, choose, then confirm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Protocol

from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.candidates import Candidate, Holder, candidates_of, deepest_of, full_name, scored
from muwa.layer_search.checks import check_settings
from muwa.layer_search.steps import Log, choose, kept
from muwa.runtime.progress import track
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Search

STARTS = ("clip", "ratio")


class Judge(Protocol):
    """Says what a model with a candidate edit puts out, against the unedited one."""

    anew: str  # how a choice is confirmed, for a sentence: "Drawn again with 12 sampling steps from fresh seeds"

    @property
    def counts(self) -> tuple[int, int]:
        """How many outputs the retain and the utility rates are of."""

    def before(self) -> Evaluation:
        """The unedited model, as the search looks at it."""

    def judge(self, candidate: Candidate, step: float, *, anew: bool = False) -> tuple[Evaluation, float]:
        """(the evaluation; the upper end of the 95 % interval of the share lost of what was right before)."""


def by_outputs(
    model: Holder, gradients: Mapping[str, Gradients], task: Task, concept: str, judge: Judge, *, start: str,
    candidates: int | None, granularity: str, rule: str, tolerance: float, first_step: float, max_evals: int,
    lost_at_most: float, confirmations: int, log: Log, progress: bool,
) -> Search:  # fmt: skip
    """The loop of `generation` and `answering`; its arguments are theirs."""
    scores, fronts = scored(model, gradients, granularity)
    front = tuple(full_name(component, name) for component, names in fronts.items() for name in names)
    log("scores", {"concept": concept, "scores": scores, "front": front})
    searched = candidates_of(model, gradients, task, concept, fronts, start, first_step, granularity)
    if rule == "deepest" and searched:
        searched = [max(searched, key=deepest_of)]
    searched = searched[: candidates or len(searched)]
    trace: list[Evaluation] = []

    def note(row: Evaluation) -> None:
        trace.append(replace(row, iteration=1 + sum(other.layer == row.layer for other in trace)))
        log("evaluation", {"concept": concept, **asdict(trace[-1])})

    before = judge.before()
    for candidate in track(searched, "searching layers", len(searched), show=progress):
        trying = bisection(candidate.first, max_evals)
        step: float | None = next(trying)
        while step is not None:
            row, lost = judge.judge(candidate, step)
            note(row)
            step = None if row.feasible and lost <= lost_at_most else next_step(trying, row.feasible)
    named = {candidate.name: candidate for candidate in searched}
    left = list(range(len(trace)))
    why = f"None of {confirmations} choices held. {judge.anew} each was still recognised."
    for _ in range(confirmations):
        place, reason = choose(
            [trace[i] for i in left], rule=rule, criterion="top1", tolerance=tolerance, counts=judge.counts
        )
        if place is None:
            why = reason
            break
        tried = trace[left.pop(place)]
        row, _ = judge.judge(named[tried.layer], tried.step, anew=True)
        note(row)
        if row.feasible or rule != "constrained":
            why = f"{reason} {judge.anew} it is recognised in {row.forget_top1:.0%} and keeps {kept(row):.1%}."
            return Search(concept, rule, granularity, scores, front, before, tuple(trace), len(trace) - 1, why)
    return Search(concept, rule, granularity, scores, front, before, tuple(trace), None, why)


def check_outputs(
    model: Holder,
    *,
    start: str,
    forget_at_most: float,
    lost_at_most: float,
    counts: Mapping[str, int],
    **settings: object,
) -> None:
    """Refuse settings that no such search can work with.

    Args:
        counts: Setting -> how many of something, at least 1.
        settings: As in `check_settings`.

    Raises:
        ValueError: Names the key, what it was and what it may be.
    """
    if start not in STARTS:
        raise ValueError(f"layer_search.start: got {start!r}, want one of {', '.join(STARTS)}")
    for key, value in counts.items():
        if value < 1:
            raise ValueError(f"layer_search.{key}: got {value}, want at least 1")
    for key, share in (("forget_at_most", forget_at_most), ("lost_at_most", lost_at_most)):
        if not 0 < share < 1:
            raise ValueError(f"layer_search.{key}: got {share}, want a share in (0, 1)")
    for clip in model.clips.values():
        check_settings(clip, **settings)


def check_pictures(key: str, pictures: int, forget_at_most: float) -> None:
    """Refuse so few pictures that no step could be feasible; of answers, so few questions (a rule of thumb there, as the
    wordings of one picture are not independent).

    Raises:
        ValueError: Says how many are needed.
    """
    z2 = 1.959964**2
    if z2 / (pictures + z2) > forget_at_most:  # Wilson's upper end when none is recognised
        least = int(z2 * (1 - forget_at_most) / forget_at_most) + 1
        raise ValueError(
            f"{key}={pictures}: even with none recognised the 95 % interval reaches {z2 / (pictures + z2):.2f}, above "
            f"forget_at_most={forget_at_most}: no step could be feasible. Take at least {least}"
        )

"""Checkpoint selection: which of the edits that a method evaluated becomes its edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from muwa.layer_search.choice import (
    ACCURACIES,
    ROUNDING,
    Acceptance,
    choose,
    feasible_note,
    kept_in_words,
    near_best,
)
from muwa.methods._edits import Deltas
from muwa.methods._evaluator import WHOLE_MODEL, EditEvaluator
from muwa.run import Run
from muwa.runtime.distributed import ALONE
from muwa.types.data import Task
from muwa.types.ranges import Criterion, PartialShare, SelectionRule
from muwa.types.search import ALL_WEIGHTS, Candidate, Evaluation, LayerScore, Search

RULES = ("best", "first")
CRITERIA = ("top5", "top1")
TOLERANCE = 1.0  # standard errors, as in layer_search, so that "best" here equals SLUG's "constrained"
# Criterion and target are not used: the evaluations already say whether they are feasible.
BEST = Acceptance("constrained", "top5", 0.0, TOLERANCE, stranger=0.0)
NO_SCORES: Mapping[str, LayerScore] = MappingProxyType({})


@dataclass(frozen=True)
class Selection:
    """How a method selects among the edits that it evaluated.

    Args:
        rule: "best" (`best_of`) or "first" (`first_of`).
        criterion: The forget accuracy that decides what is feasible: "top5" | "top1".
        target: An edit is feasible if that accuracy on the probe images is at most this; in [0, 1).

    Raises:
        ValueError: A setting is out of range.
    """

    rule: str
    criterion: str
    target: float

    def __post_init__(self) -> None:
        for key, value, choices in (("rule", self.rule, RULES), ("criterion", self.criterion, CRITERIA)):
            if value not in choices:
                raise ValueError(f"method.{key}: got {value!r}, want one of {', '.join(choices)}")
        if not 0 <= self.target < 1:
            raise ValueError(f"method.target: got {self.target}, want a forget accuracy in [0, 1)")


@dataclass(frozen=True)
class SelectionSettings:
    """The settings of a method that evaluates several edits and selects one.

    Args:
        rule, criterion, target: See `Selection`.
    """

    rule: SelectionRule
    criterion: Criterion
    target: PartialShare

    @property
    def selection(self) -> Selection:
        """How the edit is selected.

        Raises:
            ValueError: A setting is out of range.
        """
        return Selection(self.rule, self.criterion, self.target)


def first_of(trace: Sequence[Evaluation]) -> int:
    """The index of the first evaluation with the lowest forget top-1 accuracy. The kept rate plays no part.

    Source: the release of SLUG reports this checkpoint of its baselines.
    """
    return min(range(len(trace)), key=lambda i: trace[i].metrics["forget_top1"])


def best_of(trace: Sequence[Evaluation]) -> int | None:
    """The index of the best feasible evaluation, or None if none is feasible.

    It forgets most thoroughly (lowest closeness) among the feasible ones whose kept rate is within
    `TOLERANCE` standard errors of the best. SLUG's search chooses in the same way by the rule "constrained"
    (`muwa.layer_search.choice.choose`).
    """
    return choose(trace, BEST)[0]


class Checkpoints:
    """Evaluates the edits of a method in turn, and stores the deltas of those that can still be selected.

    Each evaluation is logged to `evaluator.features.run`.

    Args:
        evaluator: Evaluates an edit on the probe images.
        trace, deltas: State of an interrupted computation to resume: its evaluations, which are logged again,
            and str(index in the trace) -> deltas. Both are mutated.
    """

    def __init__(
        self,
        evaluator: EditEvaluator,
        trace: list[Evaluation] | None = None,
        deltas: dict[str, Deltas] | None = None,
    ):
        self._evaluator = evaluator
        self.trace = [] if trace is None else trace
        self.deltas = {} if deltas is None else deltas
        for row in self.trace:
            self._log(row)

    def evaluate(
        self, deltas: Deltas, step: float, candidate: Candidate = WHOLE_MODEL, iteration: int | None = None
    ) -> Evaluation:
        """Evaluate an edit and add it to the trace. Deltas that can no longer be selected are dropped.

        Args:
            deltas, step, candidate: As in `EditEvaluator`.
            iteration: Number to record; defaults to the 1-based position in the trace.
        """
        row = self._evaluator(deltas, iteration or len(self.trace) + 1, step, candidate)
        self.trace.append(row)
        store_selectable(self.deltas, self.trace, deltas, self._evaluator.largest_error)
        self._log(row)
        return row

    def _log(self, row: Evaluation) -> None:
        self._evaluator.features.run.log("evaluation", row.record())

    def result(self, **more: Any) -> dict[str, Any]:
        """The value that `cached_trace` stores for this method; `more` adds entries.

        Returns:
            {"before": the evaluation of the unedited model, "trace": all evaluations, "deltas": str(index in
            the trace) -> deltas; what `first_of` and `best_of` select is always included, ...}.
        """
        return {"before": self._evaluator.before(), "trace": self.trace, "deltas": self.deltas, **more}


def store_selectable(
    stored: dict[str, Deltas], trace: Sequence[Evaluation], deltas: Deltas, largest_error: float
) -> None:
    """Store the deltas of the last evaluation if it can be selected, now or later. Drop those that cannot.

    Args:
        stored: str(index in `trace`) -> deltas; mutated.
        deltas: The deltas of the last evaluation.
        largest_error: The largest standard error that a kept rate can have (`EditEvaluator.largest_error`).
    """
    wanted = {first_of(trace), *_may_be_best(trace, largest_error)}
    if len(trace) - 1 in wanted:
        stored[str(len(trace) - 1)] = deltas
    for index in [key for key in stored if int(key) not in wanted]:
        del stored[index]


def _may_be_best(trace: Sequence[Evaluation], largest_error: float) -> set[int]:
    """The indices of the feasible evaluations that `best_of` may select, now or after more evaluations.

    A feasible evaluation is ruled out if one of these holds:

    - The best kept rate so far is higher by more than the tolerance can ever allow.
    - Another one has at least its kept rate and ranks before it: its closeness is lower,
      or it is equal and comes earlier in the trace.
    """
    reach = TOLERANCE * largest_error + ROUNDING
    feasible = [i for i, row in enumerate(trace) if row.feasible]
    most = max((trace[i].kept for i in feasible), default=0.0)
    near = [i for i in feasible if trace[i].kept >= most - reach]
    rank = {i: (trace[i].closeness, i) for i in near}
    return {i for i in near if not any(trace[j].kept >= trace[i].kept and rank[j] < rank[i] for j in near)}


def evaluate_each(
    evaluator: EditEvaluator,
    edits: Iterable[tuple[float, Deltas]],
    total: int,
    what: str,
    candidate: Candidate = WHOLE_MODEL,
) -> dict[str, Any]:
    """Evaluate edits in turn, without storing their deltas.

    Args:
        edits: (step, deltas) of each edit.
        total: Number of edits.
        what: What is being done, for the progress bar ("dampening").
        candidate: What is edited, for the record.

    Returns:
        {"before": the evaluation of the unedited model, "trace": one evaluation per edit}.
    """
    run = evaluator.features.run
    trace: list[Evaluation] = []
    for step, deltas in run.track(edits, what, total):
        trace.append(evaluator(deltas, len(trace) + 1, step, candidate))
        run.log("evaluation", trace[-1].record())
    return {"before": evaluator.before(), "trace": trace}


def cached_trace(
    run: Run,
    function: Callable[..., dict[str, Any]],
    *args: Any,
    task: Task,
    resume: str | None = None,
    **keywords: Any,
) -> dict[str, Any]:
    """`function(*args, run=run, **keywords)`, read back from the cache if it was computed before.

    Each evaluation is logged exactly once, with the names to forget: when it is computed, or when it is read
    back. The main rank computes alone: the `run` that `function` gets has no worker ranks.

    Args:
        function: Takes `run`, logs its evaluations to it, and returns {"trace": all evaluations, ...}.
        resume: As in `Run.cached`.
    """
    concept, logged = ", ".join(task.names), []

    def log(event: str, row: dict[str, object]) -> None:
        logged.append(event)
        run.log(event, {"concept": concept, **row})

    free = {"run": replace(run, log=log, distributed=ALONE)}
    result: dict[str, Any] = run.cached("edit", function, *args, _free=free, _resume=resume, **keywords)
    if not logged:
        for row in result["trace"]:
            log("evaluation", row.record())
    return result


def search_of(
    task: Task,
    selection: Selection,
    result: Mapping[str, Any],
    what: str,
    *,
    granularity: str = ALL_WEIGHTS,
    scores: Mapping[str, LayerScore] = NO_SCORES,
    front: tuple[str, ...] = (),
) -> Search:
    """The record of what was evaluated, for all names together, and of what was selected.

    Args:
        result: {"before", "trace", ...} as `cached_trace` returns it.
        what: What each evaluation stands for, in the plural ("epochs", "strengths").
        granularity: What counted as one layer, for the record.
        scores, front: The scores and the Pareto front of the layers, if layers were scored.
    """
    trace = result["trace"]
    chosen = best_of(trace) if selection.rule == "best" else first_of(trace)
    why = _why(selection, trace, chosen, what)
    return Search(
        ", ".join(task.names),
        selection.rule,
        granularity,
        scores,
        front,
        result["before"],
        tuple(trace),
        chosen,
        why,
    )


def _why(selection: Selection, trace: Sequence[Evaluation], chosen: int | None, what: str) -> str:
    """The reason, in one sentence."""
    note = feasible_note(trace, what)
    if chosen is None:
        least = min(row.forgotten for row in trace)
        return f"No feasible {what}: the lowest {ACCURACIES[selection.criterion]} was {least:.1%}; {note}."
    if selection.rule == "best":
        best = max(row.kept for row in trace if row.feasible)
        equal = f"the feasible {what} whose kept rate is {near_best(TOLERANCE, best)}"
        most = "this one forgets most thoroughly (its samples are least close to their name)"
        return f"Among {equal}, {most}; it keeps {kept_in_words(trace[chosen])}; {note}."
    top1 = trace[chosen].metrics["forget_top1"]
    return f"The first of the {what} with the lowest {ACCURACIES['top1']} ({top1:.1%}); {note}."


def deltas_of(search: Search, result: Mapping[str, Any]) -> Deltas:
    """The deltas of the selected evaluation, from `Checkpoints.result`; {} if nothing was selected."""
    deltas: Deltas = result["deltas"][str(search.chosen)] if search.chosen is not None else {}
    return deltas

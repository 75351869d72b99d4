"""Checkpoint selection: which of the edits that a method tried becomes its edit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from muwa.layer_search.choice import Acceptance, choose
from muwa.methods._edits import Deltas
from muwa.methods._evaluator import WHOLE_MODEL, EditEvaluator
from muwa.run import Run
from muwa.runtime.distributed import ALONE
from muwa.types.data import Task
from muwa.types.search import ALL_WEIGHTS, Candidate, Evaluation, LayerScore, Search

RULES = ("best", "first")
CRITERIA = ("top5", "top1")
TOLERANCE = 1.0  # standard errors, as in conf/layer_search: "best" means the same for SLUG and the baselines
BEST = Acceptance("constrained", "top5", 0.0, TOLERANCE)
NO_SCORES: Mapping[str, LayerScore] = MappingProxyType({})


class Selects(Protocol):
    """A method whose settings say how it selects."""

    @property
    def rule(self) -> str:
        """See `Selection`."""

    @property
    def criterion(self) -> str:
        """See `Selection`."""

    @property
    def target(self) -> float:
        """See `Selection`."""


@dataclass(frozen=True)
class Selection:
    """How a method selects among the edits that it tried.

    Args:
        rule: "best" (`best_of`) or "first" (`first_of`).
        criterion, target: An edit is feasible when the forget accuracy by `criterion` ("top5" | "top1") is at
            most `target` on the probe images.

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

    @classmethod
    def of(cls, method: Selects) -> Selection:
        """Read from the settings of a method that have the same names."""
        return cls(method.rule, method.criterion, method.target)


def first_of(trace: Sequence[Evaluation]) -> int:
    """The first evaluation with the lowest forget top-1 accuracy. What it keeps plays no part.

    Source: the release of SLUG reports this checkpoint of its baselines.
    """
    return min(range(len(trace)), key=lambda i: trace[i].metrics["forget_top1"])


def best_of(trace: Sequence[Evaluation]) -> int | None:
    """The feasible evaluation that forgets deepest among those that keep most, up to `TOLERANCE`, or None.

    SLUG's own search chooses in the same way (`muwa.layer_search.choice.choose`).
    """
    return choose(trace, BEST)[0]


class Checkpoints:
    """The evaluations of a method so far, and the deltas of those that it can still select.

    Args:
        evaluator: Its run is logged to: one "evaluation" event an evaluation.
        trace, deltas: Of a computation that was stopped: its evaluations, which are logged again, and
            str(index in the trace) -> deltas. Both are added to in place.
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
        """Evaluate an edit, add it to the trace, and drop the deltas that can no longer be selected.

        Args:
            deltas, step, candidate: See `EditEvaluator`.
            iteration: The place in the trace, from 1, if it is not given.
        """
        row = self._evaluator(deltas, iteration or len(self.trace) + 1, step, candidate)
        self.trace.append(row)
        keep(self.deltas, self.trace, deltas, self._evaluator.largest_error)
        self._log(row)
        return row

    def _log(self, row: Evaluation) -> None:
        self._evaluator.features.run.log("evaluation", row.record())

    def found(self, **more: Any) -> dict[str, Any]:
        """What a cached function gives.

        Returns:
            {"before": the unedited model's evaluation, "trace": all evaluations, "kept": str(index in the
            trace) -> deltas of the first (`first_of`) and of the best (`best_of`), ...}.
        """
        return {"before": self._evaluator.before(), "trace": self.trace, "kept": self.deltas, **more}


def keep(found: dict[str, Deltas], trace: Sequence[Evaluation], deltas: Deltas, largest_error: float) -> None:
    """Keep the last edit's deltas if it can be selected, now or later; drop those that no longer can.

    Args:
        found: str(index in `trace`) -> deltas; changed in place.
        deltas: Of the last evaluation.
        largest_error: The largest standard error that what is kept can have (`EditEvaluator.largest_error`).
    """
    wanted = {first_of(trace), *_may_be_best(trace, largest_error)}
    if len(trace) - 1 in wanted:
        found[str(len(trace) - 1)] = deltas
    for index in [key for key in found if int(key) not in wanted]:
        del found[index]


def _may_be_best(trace: Sequence[Evaluation], largest_error: float) -> set[int]:
    """Feasible evaluations that `best_of` may give, now or later.

    No other keeps as much and is deeper, and none keeps more by more than the largest tolerance.
    """
    reach = TOLERANCE * largest_error + 1e-9
    feasible = [i for i, row in enumerate(trace) if row.feasible]
    most = max((trace[i].kept for i in feasible), default=0.0)
    near = [i for i in feasible if trace[i].kept >= most - reach]
    depth = {i: (trace[i].closeness, i) for i in near}
    return {i for i in near if not any(trace[j].kept >= trace[i].kept and depth[j] < depth[i] for j in near)}


def evaluate_each(
    evaluator: EditEvaluator,
    edits: Iterable[tuple[float, Deltas]],
    total: int,
    what: str,
    candidate: Candidate = WHOLE_MODEL,
) -> dict[str, Any]:
    """Evaluate edits in turn: {"before": the unedited model's evaluation, "trace": one evaluation an edit}.

    Args:
        edits: (step, deltas) of each. The deltas are not kept.
        total: How many edits.
        what: What is done, for the progress bar ("dampening").
        candidate: What is edited, for the record.
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

    The log hears each evaluation once, with the names to forget: as it comes, or as it is read back.
    The main rank computes alone: the `run` that `function` gets has no worker ranks.

    Args:
        function: Takes `run`, logs its evaluations to it, and gives {"trace": all evaluations, ...}.
        resume: See `Run.cached`.
    """
    concept, logged = ", ".join(task.names), []

    def log(event: str, row: dict[str, object]) -> None:
        logged.append(event)
        run.log(event, {"concept": concept, **row})

    free = {"run": replace(run, log=log, distributed=ALONE)}
    found: dict[str, Any] = run.cached("edit", function, *args, _free=free, _resume=resume, **keywords)
    if not logged:
        for row in found["trace"]:
            log("evaluation", row.record())
    return found


def search_of(
    task: Task,
    selection: Selection,
    found: Mapping[str, Any],
    what: str,
    *,
    granularity: str = ALL_WEIGHTS,
    scores: Mapping[str, LayerScore] = NO_SCORES,
    front: tuple[str, ...] = (),
) -> Search:
    """What was tried for all names together, and which of it was selected.

    Args:
        found: {"before", "trace", ...} as `cached_trace` gives it.
        what: What one evaluation is of, in the plural ("epochs", "strengths").
        granularity: What was edited, for the record.
        scores, front: Of the layers, where layers were scored.
    """
    trace = found["trace"]
    chosen = best_of(trace) if selection.rule == "best" else first_of(trace)
    why = _why(selection, trace, chosen, what)
    return Search(
        ", ".join(task.names),
        selection.rule,
        granularity,
        scores,
        front,
        found["before"],
        tuple(trace),
        chosen,
        why,
    )


def _why(selection: Selection, trace: Sequence[Evaluation], chosen: int | None, what: str) -> str:
    """One sentence for people."""
    note = f"{sum(row.feasible for row in trace)} of {len(trace)} {what} were feasible"
    if chosen is None:
        least = min(row.forgotten for row in trace)
        return f"No feasible one: the lowest forget {selection.criterion} reached was {least:.1%}; {note}."
    if selection.rule == "best":
        most = f"Of the feasible {what} that keep most, or at most {TOLERANCE:g} standard error less"
        keeps = f"it keeps {trace[chosen].kept:.1%} of retain and utility"
        return f"{most}, the one that forgets deepest; {keeps}; {note}."
    top1 = trace[chosen].metrics["forget_top1"]
    how = (
        f"The first of the {what} with forget top1 0"
        if top1 == 0
        else f"The lowest forget top1 of the {what}"
    )
    return f"{how} ({top1:.1%}); {note}."


def deltas_of(search: Search, found: Mapping[str, Any]) -> Deltas:
    """The deltas of the selected evaluation, from `Checkpoints.found`; {} if nothing was selected."""
    deltas: Deltas = found["kept"][str(search.chosen)] if search.chosen is not None else {}
    return deltas

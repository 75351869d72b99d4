"""The search by what a model generates or answers: bisect each layer's step, choose a step, confirm it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.candidates import StartingPoint, starting_points
from muwa.layer_search.choice import choose
from muwa.layer_search.pareto import scored_layers
from muwa.layer_search.settings import OutputSettings
from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, Search


class OutputEvaluator(Protocol):
    """Evaluates a step by the outputs of the edited model, beside those of the unedited model.

    Attributes:
        confirmation: How a step is evaluated again, as the beginning of a sentence: "Generated again with 12
            sampling steps from fresh seeds".
    """

    confirmation: str

    def before(self) -> Evaluation:
        """The unedited model, as the search looks at it."""

    def __call__(
        self, layers: Mapping[str, Layer], step: float, *, confirm: bool = False
    ) -> tuple[Evaluation, float]:
        """Evaluate one step.

        Args:
            layers: Encoder -> its layer.
            step: In units of each layer's |theta| / |g_f|.
            confirm: Evaluate with more and other samples.

        Returns:
            (the evaluation; how much of the other sets was lost, as `Hits.lost` says it).
        """


def by_outputs(
    search: OutputSettings,
    evaluator: OutputEvaluator,
    model: Editable,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    *,
    run: Run,
) -> Search:
    """The search of `Generation` and `Answering`.

    Returns:
        The search. The last evaluations of its trace are the confirmations; `chosen` is the last one, or None
        if none of them held.
    """
    scored = scored_layers(model, gradients, search.granularity)
    run.log("scores", {"concept": concept, "scores": scored.scores, "front": scored.front})
    points = starting_points(search, model, gradients, task, concept, scored)
    if search.rule == "deepest" and points:
        points = [max(points, key=lambda point: point.depth)]
    points = points[: search.candidates or len(points)]
    before = evaluator.before()
    trace = _Trace(concept, run)
    tried: list[tuple[StartingPoint, Evaluation]] = []
    for point in run.track(points, "searching layers", len(points)):
        steps = bisection(point.first_step, search.max_evals)
        step: float | None = next(steps)
        while step is not None:
            row, lost = evaluator(point.layers, step)
            tried.append((point, trace.add(row)))
            done = row.feasible and lost <= search.lost_at_most
            step = None if done else next_step(steps, row.feasible)
    chosen, why = _confirm(search, evaluator, tried, trace)
    return Search(
        concept,
        search.rule,
        search.granularity,
        scored.scores,
        scored.front,
        before,
        tuple(trace.rows),
        chosen,
        why,
    )


def _confirm(
    search: OutputSettings,
    evaluator: OutputEvaluator,
    tried: list[tuple[StartingPoint, Evaluation]],
    trace: _Trace,
) -> tuple[int | None, str]:
    """Choose a step and evaluate it again. If it is no longer feasible, choose among the others, a few times.

    Returns:
        (index into the trace of the last evaluation, or None if no step was feasible again; why).
    """
    left, confirmed = list(tried), 0
    while confirmed < search.confirmations and (left or not tried):
        place, reason = choose([row for _, row in left], search.acceptance)
        if place is None:
            return None, reason
        point, row = left.pop(place)
        again, confirmed = trace.add(evaluator(point.layers, row.step, confirm=True)[0]), confirmed + 1
        if again.feasible or search.rule != "constrained":
            rates = f"recognised in {again.forgotten:.0%} and keeps {again.kept:.1%}"
            return len(trace.rows) - 1, f"{reason} {evaluator.confirmation} it is {rates}."
    none = f"None of {confirmed} choices held."
    return None, f"{none} {evaluator.confirmation} each was still recognised."


class _Trace:
    """The evaluations of a search, numbered within their candidate and logged as they come."""

    def __init__(self, concept: str, run: Run):
        self._concept, self._run = concept, run
        self.rows: list[Evaluation] = []

    def add(self, row: Evaluation) -> Evaluation:
        """Number, log and keep a row."""
        row = replace(row, iteration=1 + sum(other.candidate == row.candidate for other in self.rows))
        self.rows.append(row)
        self._run.log("evaluation", {"concept": self._concept, **row.record()})
        return row

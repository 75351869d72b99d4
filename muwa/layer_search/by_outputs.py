"""The search by generated outputs, images or answers.

Bisect the step from each starting point, choose one of the steps tried, confirm it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Protocol

from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.candidates import StartingPoint, starting_points
from muwa.layer_search.choice import choose, kept_in_words
from muwa.layer_search.pareto import scored_layers
from muwa.layer_search.settings import OutputSettings
from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, Search

DECIDES = "The upper end of the accuracy's 95 % interval decides what is feasible."


class OutputEvaluator(Protocol):
    """Evaluates a step by the outputs of the edited model, compared with those of the unedited model.

    Attributes:
        confirmation: How a step is confirmed, as a noun phrase: "12 sampling steps, fresh seeds".
    """

    confirmation: str

    def before(self) -> Evaluation:
        """Evaluate the unedited model on the outputs of the search, not on those of a confirmation."""

    def __call__(
        self, layers: Mapping[str, Layer], step: float, *, confirm: bool = False
    ) -> tuple[Evaluation, float]:
        """Evaluate one step.

        Args:
            layers: Encoder -> its layer.
            step: In units of each layer's |theta| / |g_f|.
            confirm: Confirm the step: evaluate it on more or other outputs than the search does.

        Returns:
            (the evaluation; how much of the retain and utility sets was lost, as
            `muwa.layer_search.evaluators.outputs.Hits.lost` defines it).
        """


def by_outputs(
    settings: OutputSettings,
    evaluator: OutputEvaluator,
    model: Editable,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    *,
    run: Run,
) -> Search:
    """Bisect the step on each starting point, judging steps by generated outputs; choose and confirm one.

    Shared by `muwa.layer_search.generation` and `muwa.layer_search.answering`. The search of a starting point
    ends early at a feasible step that lost at most `settings.lost_at_most`.

    Args:
        gradients: Encoder (a key of `model.clips`) -> the gradients of its CLIP.
        task: The task of `concept` alone.

    Returns:
        The search. The last evaluations of its trace are the confirmations, and `chosen` is the index of the
        last confirmation. With rule "constrained" it is None if no confirmation was feasible. It is None with
        every rule if no layer is on the front, or has a gain.
    """
    scored = scored_layers(model, gradients, settings.granularity)
    run.log("scores", {"concept": concept, "scores": scored.scores, "front": scored.front})
    points = starting_points(settings, model, gradients, task, concept, scored)
    if settings.rule == "deepest" and points:
        points = [max(points, key=lambda point: point.depth)]
    points = points[: settings.candidates or len(points)]
    before = evaluator.before()
    trace = _Trace(concept, run)
    tried: list[tuple[StartingPoint, Evaluation]] = []
    for point in run.track(points, "searching layers", len(points)):
        steps = bisection(point.first_step, settings.max_evals)
        step: float | None = next(steps)
        while step is not None:
            row, lost = evaluator(point.layers, step)
            tried.append((point, trace.add(row)))
            done = row.feasible and lost <= settings.lost_at_most
            step = None if done else next_step(steps, row.feasible)
    chosen, why = _confirm(settings, evaluator, tried, trace)
    return Search(
        concept,
        settings.rule,
        settings.granularity,
        scored.scores,
        scored.front,
        before,
        tuple(trace.rows),
        chosen,
        why,
    )


def _confirm(
    settings: OutputSettings,
    evaluator: OutputEvaluator,
    tried: list[tuple[StartingPoint, Evaluation]],
    trace: _Trace,
) -> tuple[int | None, str]:
    """Choose a step and confirm it. Rule "constrained" chooses another one if it is not feasible again.

    Args:
        tried: The starting point and evaluation of every step of the search.
        trace: The same evaluations; each confirmation is added to it.

    Returns:
        (the last confirmation's index in the trace, or None if no step was chosen and confirmed; why).
    """
    refuted: list[str] = []  # better choices that were not feasible on confirmation
    for point, step, reason in islice(_choices(settings, tried), settings.confirmations):
        again = trace.add(evaluator(point.layers, step, confirm=True)[0])
        if again.feasible or settings.rule != "constrained":
            first = f"Not feasible on confirmation: {', '.join(refuted)}. Next: " if refuted else ""
            rates = f"recognised in {again.forgotten:.0%} of outputs; it keeps {kept_in_words(again)}"
            why = f"{first}{reason} On confirmation ({evaluator.confirmation}): {rates}."
            return len(trace.rows) - 1, why
        refuted.append(f"{again.candidate.name} by {again.relative_norm:.1%}")
    confirmed = len(refuted)
    if not confirmed:
        _, reason = choose([row for _, row in tried], settings.acceptance)
        return None, f"{reason} {DECIDES}" if tried else reason
    if confirmed == 1:
        return None, f"The one step confirmed ({evaluator.confirmation}) was not feasible again."
    return None, f"None of the {confirmed} steps confirmed ({evaluator.confirmation}) was feasible again."


def _choices(
    settings: OutputSettings, tried: list[tuple[StartingPoint, Evaluation]]
) -> Iterator[tuple[StartingPoint, float, str]]:
    """The steps to confirm, best first: (starting point, step, why).

    First the feasible steps that were tried. After them, if `settings.lengthen` is given, the first choice
    again with a step that is so many times as long, then longer again, without end.
    """
    left = list(tried)
    choices: list[tuple[StartingPoint, float]] = []
    while left:
        place, reason = choose([row for _, row in left], settings.acceptance)
        if place is None:
            break
        point, row = left.pop(place)
        choices.append((point, row.step))
        yield point, row.step, reason
    if choices and settings.lengthen:
        point, step = choices[0]
        reason = "The first choice was made longer, as no step tried was feasible again."
        while True:
            step *= settings.lengthen
            yield point, step, reason


class _Trace:
    """The evaluations of a search, numbered per candidate and logged as they come."""

    def __init__(self, concept: str, run: Run):
        self._concept, self._run = concept, run
        self.rows: list[Evaluation] = []

    def add(self, row: Evaluation) -> Evaluation:
        """Number an evaluation, log it and add it to the trace. Returns the numbered one."""
        row = replace(row, iteration=1 + sum(other.candidate == row.candidate for other in self.rows))
        self.rows.append(row)
        self._run.log("evaluation", {"concept": self._concept, **row.record()})
        return row

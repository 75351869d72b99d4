"""SLUG's search: on every layer of the Pareto front, double the step until it forgets, then bisect."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from muwa.layer_search.base import LayerSearch
from muwa.layer_search.checks import check_above_0, check_at_least_1
from muwa.layer_search.choice import Acceptance
from muwa.layer_search.evaluators.zero_shot import StepEvaluator
from muwa.layer_search.pareto import ScoredLayers, scored_layers, searched
from muwa.layer_search.settings import ZeroShotSettings
from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.ranges import Count, Positive
from muwa.types.search import Evaluation, Layer, Search


def bisection(first: float, max_evals: int) -> Generator[float, bool, None]:
    """Generator of steps; the caller sends back whether the step it just received forgot.

    The first step is `first`, and the step is doubled until one forgets. From then on each step is the
    midpoint of two: the last step that forgot and the last one that did not (0 if every step so far forgot).
    There are always `max_evals` steps.

    Source: SLUG (arXiv 2407.11867), algorithm 3; docs/method.md, "Step". The release uses the same magnitudes
    with a negative sign.

    >>> steps = bisection(0.8, 4)
    >>> next(steps), steps.send(False), steps.send(True), round(steps.send(True), 9)
    (0.8, 1.6, 1.2000000000000002, 1.0)
    """
    low, high, step = 0.0, None, first
    for _ in range(max_evals):
        forgotten = yield step
        if forgotten:
            high = step
            step = (low + high) / 2
        else:
            low = step
            step = 2 * step if high is None else (low + high) / 2


def next_step(steps: Generator[float, bool, None], forgotten: bool) -> float | None:
    """The next step of a bisection, or None at its end.

    Args:
        steps: A generator of `bisection` that has already given a step.
        forgotten: Whether that step forgot.
    """
    try:
        return steps.send(forgotten)
    except StopIteration:
        return None


def deepest(layers: Sequence[Layer]) -> Layer:
    """The layer nearest its tower's output. Ties go to the vision tower, then to the later layer.

    Source: the release of SLUG, for Stable Diffusion and vision-language models (docs/method.md, "Choice").
    """
    return max(enumerate(layers), key=lambda pair: (pair[1].depth, pair[1].tower == "vision", pair[0]))[1]


@dataclass(frozen=True)
class ParetoBisect(ZeroShotSettings, LayerSearch):
    """Search each layer on the Pareto front of its tower by bisection, and choose a step by `rule`.

    Each tower is searched from its input to its output. With rule "deepest", only the single deepest layer
    across all fronts is searched.

    Args:
        first_step: The first step, as a fraction of |theta| / |g_f|; the paper's is 0.1.
        max_evals: Number of steps tried per layer; the paper's is 10.
        candidates: With whitened gradients and the rule "margin", the layers of largest gain
            (`muwa.layer_search.gains`) are searched instead of the front: at most this many, of all towers
            together. None searches all layers that have a gain, and records their alignments too.

    The other arguments are those of `muwa.layer_search.settings.ZeroShotSettings`.

    Source: SLUG (arXiv 2407.11867), algorithms 1 to 3. Differs in two ways (docs/method.md, "Where we
    differ"):

    - The probe images are not those of the report.
    - The rule "constrained" also looks at the kept rate of a step.
    """

    first_step: Positive
    max_evals: Count
    candidates: Count | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range, or the model is not a CLIP.

        Raises:
            ValueError: Names the key, what it was and what it may be.
        """
        self.check_settings("layer_search=pareto_bisect", model)
        check_above_0(first_step=self.first_step, max_evals=self.max_evals)
        check_at_least_1(candidates=1 if self.candidates is None else self.candidates)

    def needs_retain_gradient(self, *, whitened: bool) -> bool:
        """See `LayerSearch`. The rule "margin" reads gains alone. Who tries all layers gets all scores."""
        by_gain = whitened and self.acceptance(whitened).rule == "margin"
        return not by_gain or self.candidates is None

    def __call__(
        self, model: Editable, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search a CLIP; its gradients are under the key ""."""
        scored = scored_layers(model, gradients, self.granularity, self.towers)
        run.log("scores", {"concept": concept, "scores": scored.scores, "front": scored.front})
        acceptance = self.acceptance(gradients[""].whitened is not None)
        layers = self.layers_to_search(scored, acceptance)
        evaluator = StepEvaluator(
            model.clips[""].observe(run),
            gradients[""],
            task.probe,
            layers,
            concept=concept,
            acceptance=acceptance,
        )
        before = evaluator.before()
        steps = self._try_steps(evaluator, layers)
        for _ in run.track(steps, f"searching {len(layers)} layers", len(layers) * self.max_evals):
            pass  # only draws the progress bar: the evaluator collects the trace
        return searched(concept, self.granularity, scored, before, evaluator.trace, acceptance)

    def layers_to_search(self, scored: ScoredLayers, acceptance: Acceptance) -> list[Layer]:
        """The layers to search. Tower by tower, from input to output."""
        layers = [scored.layers[""][name] for name in scored.front]
        if acceptance.rule == "deepest" and layers:
            return [deepest(layers)]
        if acceptance.rule == "margin" and (gains := scored.by_gain("", self.towers)):
            layers = gains[: self.candidates or len(gains)]
        return sorted(layers, key=lambda layer: (self.towers.index(layer.tower), layer.depth))

    def _try_steps(self, evaluator: StepEvaluator, layers: Sequence[Layer]) -> Iterator[Evaluation]:
        """Bisect the step of each layer in turn; yield each evaluation as it is made."""
        for layer in layers:
            steps = bisection(self.first_step * evaluator.ratio(layer), self.max_evals)
            step: float | None = next(steps)
            while step is not None:
                row = evaluator(layer, step)
                yield row
                step = next_step(steps, row.feasible)

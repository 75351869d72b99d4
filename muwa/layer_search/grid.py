"""Try given layers and steps: every pair of them (`Grid`), or one layer with one step (`Fixed`).

Layers are scored all the same, for the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen

from muwa.layer_search.base import LayerSearch
from muwa.layer_search.checks import check_one_kind_of_step
from muwa.layer_search.evaluators.zero_shot import StepEvaluator
from muwa.layer_search.pareto import scored_layers, searched
from muwa.layer_search.settings import ZeroShotSettings
from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.ranges import Number, Step, Text, Texts
from muwa.types.search import Search


@dataclass(frozen=True)
class Grid(ZeroShotSettings, LayerSearch):
    """Try every given step on every given layer, and choose by `rule`.

    Args:
        layers: Names of layers at this granularity; None takes the layers on the Pareto front.
        steps: The lambdas in `theta + lambda * g_f`, as `edit.step` of results.json gives them.
        relative_steps: Steps as fractions of |theta| / |g_f|. Give either `steps` or `relative_steps`.

    The other arguments are those of `muwa.layer_search.settings.ZeroShotSettings`.
    """

    layers: Texts | None
    steps: Annotated[Sequence[Step], MinLen(1)] | None
    relative_steps: Annotated[Sequence[Number], MinLen(1)] | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range, a layer is unknown, or the model is not a CLIP.

        Raises:
            ValueError: Names the key, what it was and what it may be; for an unknown layer, the most similar
                names.
        """
        self.check_settings("layer_search=grid", model, self.layers or ())
        check_one_kind_of_step(steps=self.steps, relative_steps=self.relative_steps)

    def needs_retain_gradient(self, *, whitened: bool) -> bool:
        """See `LayerSearch`. Along a whitened gradient, given layers are recorded with their gains alone."""
        return self.layers is None or not whitened

    def __call__(
        self, model: Editable, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search a CLIP; its gradients are under the key ""."""
        scored = scored_layers(model, gradients, self.granularity, self.towers)
        run.log("scores", {"concept": concept, "scores": scored.scores, "front": scored.front})
        layers = [scored.layers[""][name] for name in (scored.front if self.layers is None else self.layers)]
        acceptance = self.acceptance(gradients[""].whitened is not None)
        evaluator = StepEvaluator(
            model.clips[""].observe(run),
            gradients[""],
            task.probe,
            layers,
            concept=concept,
            acceptance=acceptance,
        )
        before = evaluator.before()
        if self.steps is not None:
            pairs = [(layer, step) for layer in layers for step in self.steps]
        else:
            relative = self.relative_steps or ()
            pairs = [(layer, step * evaluator.ratio(layer)) for layer in layers for step in relative]
        for layer, step in run.track(pairs, f"trying {len(pairs)} edits", len(pairs)):
            evaluator(layer, step)
        return searched(concept, self.granularity, scored, before, evaluator.trace, acceptance)


@dataclass(frozen=True)
class Fixed(ZeroShotSettings, LayerSearch):
    """Try one given step on one given layer. Only the rule "constrained" refuses a step that is not feasible.

    Args:
        layer: Name of the layer at this granularity.
        step: The lambda in `theta + lambda * g_f`, as `edit.step` of results.json gives it.
        relative_step: The step as a fraction of |theta| / |g_f|. Give either `step` or `relative_step`.

    The other arguments are those of `muwa.layer_search.settings.ZeroShotSettings`.
    """

    layer: Text
    step: Step | None
    relative_step: Number | None

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range, the layer is unknown, or the model is not a CLIP.

        Raises:
            ValueError: Names the key, what it was and what it may be; for an unknown layer, the most similar
                names.
        """
        self.check_settings("layer_search=fixed", model, [self.layer])
        check_one_kind_of_step(step=self.step, relative_step=self.relative_step)

    def needs_retain_gradient(self, *, whitened: bool) -> bool:
        """See `LayerSearch`; as for given layers of a `Grid`."""
        return not whitened

    def __call__(
        self, model: Editable, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search a CLIP; its gradients are under the key ""."""
        grid = Grid(
            self.granularity,
            self.rule,
            self.tolerance,
            self.stranger,
            self.target,
            self.criterion,
            self.towers,
            layers=[self.layer],
            steps=None if self.step is None else [self.step],
            relative_steps=None if self.relative_step is None else [self.relative_step],
        )
        return grid(model, gradients, task, concept, run=run)

"""SLUG in small steps on the layer that it chooses, with a new forget gradient after each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from muwa.gradients.base import BatchLoss
from muwa.gradients.mean import MeanGradientSettings, gradient_sum
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.steps import add_edits, candidate_of
from muwa.methods._checks import check_above_zero, check_at_least
from muwa.methods._edits import Deltas, edit_of
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import Checkpoints, SelectionSettings, cached_trace, deltas_of, search_of
from muwa.methods.base import Method
from muwa.methods.slug import Slug
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.edit import Edit
from muwa.types.ranges import Count, CountOrZero, Positive

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Pairs, Split, Task
    from muwa.types.search import Layer, Search


@dataclass(frozen=True)
class SlugIterative(SelectionSettings, MeanGradientSettings, Method):
    """Move the layer that SLUG's search chooses in small steps, each along a new forget gradient.

    Each name is forgotten separately on the original model, and the edits are added. A name whose search
    chose no layer has no delta.

    Args:
        layer_search: SLUG's search, which chooses the layer (`muwa.methods.slug.Slug`).
        step: Length of a step, as a fraction of the norm of the layer's original weights.
        rounds: Largest number of steps.
        patience: Stop this many steps after the first feasible one.
        rule, target, criterion: Which step becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no step is feasible.
        forget_loss, retain_loss, batch_size, seed: As in `muwa.methods.slug.Slug`.

    Source: ours, as a comparison with SLUG (arXiv 2407.11867), which takes one gradient and one step.
    """

    observes: ClassVar[type[Observer]] = Features
    uses_workers: ClassVar[bool] = True

    layer_search: LayerSearch
    step: Positive
    rounds: Count
    patience: CountOrZero

    @property
    def slug(self) -> Slug:
        """The method that chooses the layers."""
        losses = self.forget_loss, self.retain_loss
        return Slug(self.layer_search, self.gradients, *losses, self.batch_size, self.seed, "fp32", None)

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=slug_iterative", self.observes, model)
        _ = self.selection  # raises for a setting that is out of range
        check_above_zero({"step": self.step})
        check_at_least({"rounds": (self.rounds, 1), "patience": (self.patience, 0)})
        self.slug.check(model, task, run)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        slug = self.slug(model, task, run)  # without searches on worker ranks
        edits = [self._edit_of(model, search, task.only(search.concept), run) for search in slug.searches]
        return replace(add_edits(edits), samples=slug.samples + sum(edit.samples for edit in edits))

    def _edit_of(self, model: Clip, search: Search, task: Task, run: Run) -> Edit:
        """The edit for the only name of `task`.

        Args:
            search: What SLUG found for it.
        """
        if search.chosen is None:
            return Edit({}, (), (search,))
        name = search.trace[search.chosen].candidate.layers[""]
        layer = next(layer for layer in model.layers(search.granularity) if layer.name == name)
        pairs = task.forget[search.concept]
        settings = Steps(self.step, self.rounds, self.patience, self.target, self.criterion)
        found = cached_trace(
            run, take_steps, model, pairs, layer, task.probe, settings, self.recipe.forget, task=task
        )
        steps = search_of(
            task,
            self.selection,
            found,
            "rounds",
            granularity=search.granularity,
            scores=search.scores,
            front=search.front,
        )
        return edit_of(task, steps, deltas_of(steps, found), len(pairs) * len(found["trace"]))


@dataclass(frozen=True)
class Steps:
    """How a layer moves: the fields of `SlugIterative` with these names."""

    step: float
    rounds: int
    patience: int
    target: float
    criterion: str


def take_steps(
    model: Clip, pairs: Pairs, layer: Layer, probe: Split, settings: Steps, loss: BatchLoss, *, run: Run
) -> dict[str, Any]:
    """Move one layer step by step along its forget gradient; evaluate after each step.

    Args:
        pairs: The forget set.
        loss: The forget loss, with its batch size and seed.

    Returns:
        See `muwa.methods._selection.Checkpoints.result`.
    """
    evaluator = EditEvaluator(
        model.observe(run), probe, criterion=settings.criterion, target=settings.target, step_unit="|theta|"
    )
    checkpoints, candidate = Checkpoints(evaluator), candidate_of({"": layer})
    silent = replace(run, progress=False)  # one bar for all steps
    length = settings.step * _norm(layer, model.weights)
    deltas: Deltas = {}
    first_feasible: int | None = None
    for turn in run.track(range(1, settings.rounds + 1), "stepping", settings.rounds):
        now = model.edited(Edit(deltas, ()))
        gradient = gradient_sum(now, pairs, loss, run=silent)["sum"]
        size = _norm(layer, gradient)
        if size == 0:
            break
        deltas = {name: delta.clone() for name, delta in deltas.items()}
        for part in layer.edited:
            delta = deltas.setdefault(part.name, gradient[part.name].new_zeros(gradient[part.name].shape))
            part.of({part.name: delta}).add_(part.of(gradient), alpha=length / size)
        row = checkpoints.evaluate(deltas, settings.step * turn, candidate)
        if first_feasible is None and row.feasible:
            first_feasible = turn
        if first_feasible is not None and turn - first_feasible >= settings.patience:
            break
    return checkpoints.result()


def _norm(layer: Layer, tensors: Mapping[str, Tensor]) -> float:
    """The norm of a layer's weights or gradient, over its scored parts."""
    return sum(part.of(tensors).double().square().sum().item() for part in layer.scored) ** 0.5

"""SLUG's step on several layers at once, or on layers picked by other criteria: the paper's ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from muwa.gradients.mean import MeanGradientSettings
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.pareto import pareto
from muwa.layer_search.scores import layer_scores
from muwa.layer_search.steps import add_edits, ratio, step_deltas
from muwa.methods._checks import check_above_zero, check_at_least, check_granularity
from muwa.methods._edits import Deltas, edit_of
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import Checkpoints, SelectionSettings, cached_trace, deltas_of, search_of
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.ranges import Count, Granularity, Positive
from muwa.types.search import BOTH_TOWERS, RELATIVE, Candidate

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Split, Task
    from muwa.types.edit import Edit
    from muwa.types.gradients import Gradients
    from muwa.types.search import Layer, LayerScore, Part

PICKS = ("front", "importance", "alignment", "random", "all")


@dataclass(frozen=True)
class SlugLayers(SelectionSettings, MeanGradientSettings, Method):
    """One step along the forget gradients g of `k` layers together: theta_l + s (|theta_l| / |g_l|) g_l.

    The relative step s is found by bisection. Each name has its layers and its step, both found on the
    original model; the edits are added.

    Args:
        pick: Which layers come first. "front": those on the Pareto fronts of the towers, most important
            first. "importance": the most important of all layers. "alignment": the least aligned of all
            layers. "random": a random order. "all": as "importance".
        k: Number of layers to edit; None takes all.
        granularity: What counts as one layer (`muwa.models.clip.layers`).
        first_step, max_evals: First step of the bisection of s, and number of steps tried.
        rule, target, criterion: Which step becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no step is feasible.
        forget_loss, retain_loss, batch_size: As in `muwa.methods.slug.Slug`.
        seed: Seed for the order of the pairs, and for pick "random".

    Source: SLUG (arXiv 2407.11867), table 4: importance alone, alignment alone, a random layer, all front
    layers, all layers. We differ: all layers share one relative step, which is searched as SLUG searches its
    step.
    """

    observes: ClassVar[type[Observer]] = Features
    uses_workers: ClassVar[bool] = True

    pick: Literal["front", "importance", "alignment", "random", "all"]
    k: Count | None
    granularity: Granularity
    first_step: Positive
    max_evals: Count

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=slug_layers", self.observes, model)
        if self.pick not in PICKS:
            raise ValueError(f"method.pick: got {self.pick!r}, want one of {', '.join(PICKS)}")
        _ = self.selection  # raises for a setting that is out of range
        check_above_zero({"first_step": self.first_step})
        check_at_least({"max_evals": (self.max_evals, 1), "k": (1 if self.k is None else self.k, 1)})
        check_granularity(self.granularity)
        self.gradients.check(model, self.recipe, run)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        edits: list[Edit] = []
        taken: list[Gradients] = []
        for name in task.names:
            gradients = self.gradients(model, task, name, self.recipe, run)
            if gradients is not None:
                taken.append(gradients[""])
                edits.append(self._edit_of(model, gradients[""], task.only(name), run))
        samples = sum(one.n_forget for one in taken) + (taken[-1].n_retain if taken else 0)
        return replace(add_edits(edits), samples=samples)

    def _edit_of(self, model: Clip, gradients: Gradients, task: Task, run: Run) -> Edit:
        """The edit for the only name of `task`."""
        layers = model.layers(self.granularity)
        scores = layer_scores(model.weights, gradients.forget, gradients.retain, layers)
        names = distinct(ordered(scores, self.pick, self.seed), layers)[: self.k]
        run.log("scores", {"concept": task.names[0], "scores": scores, "front": tuple(names)})
        chosen = [layer for layer in layers if layer.name in names]
        settings = StepSearch(self.first_step, self.max_evals, self.target, self.criterion)
        found = cached_trace(run, joint_search, model, gradients, chosen, task.probe, settings, task=task)
        search = search_of(
            task,
            self.selection,
            found,
            "steps",
            granularity=self.granularity,
            scores=scores,
            front=tuple(names),
        )
        return edit_of(task, search, deltas_of(search, found), samples=0)


def ordered(scores: Mapping[str, LayerScore], pick: str, seed: int) -> list[str]:
    """The names of the layers in the order of `pick`. Layers with a zero forget gradient are left out."""
    moving = {name: one for name, one in scores.items() if one.forget_norm > 0}
    important = sorted(moving, key=lambda name: -moving[name].importance)
    if pick == "front":
        front = {name for tower in ("vision", "text") for name in pareto(scores, tower)}
        return [name for name in important if name in front]
    if pick == "alignment":
        alignments = {name: one.alignment for name, one in moving.items() if one.alignment is not None}
        return sorted(alignments, key=lambda name: alignments[name])
    if pick == "random":
        return [list(moving)[i] for i in np.random.default_rng(seed).permutation(len(moving))]
    return important


def distinct(names: Sequence[str], layers: Sequence[Layer]) -> list[str]:
    """`names` without the layers that move the same weights as an earlier one (q, k, v of Hugging Face)."""
    edited = {layer.name: layer.edited for layer in layers}
    first: dict[tuple[Part, ...], str] = {}
    for name in names:
        first.setdefault(edited[name], name)
    return list(first.values())


@dataclass(frozen=True)
class StepSearch:
    """Settings of the search for the relative step: the fields of `SlugLayers` with these names."""

    first_step: float
    max_evals: int
    target: float
    criterion: str


def joint_search(
    model: Clip,
    gradients: Gradients,
    layers: Sequence[Layer],
    probe: Split,
    settings: StepSearch,
    *,
    run: Run,
) -> dict[str, Any]:
    """Bisect the relative step of `layers` together.

    Returns:
        See `muwa.methods._selection.Checkpoints.result`.
    """
    evaluator = EditEvaluator(
        model.observe(run), probe, criterion=settings.criterion, target=settings.target, step_unit=RELATIVE
    )
    checkpoints, names = Checkpoints(evaluator), tuple(layer.name for layer in layers)
    towers = {layer.tower for layer in layers}
    tower = towers.pop() if len(towers) == 1 else BOTH_TOWERS
    candidate = Candidate({"": " + ".join(names)}, tower, names)
    steps = bisection(settings.first_step, settings.max_evals)
    step: float | None = next(steps)
    label = f"searching {len(layers)} layers together"
    for _ in run.track(range(settings.max_evals), label, settings.max_evals):
        assert step is not None
        row = checkpoints.evaluate(joint_deltas(model, gradients, layers, step), step, candidate)
        step = next_step(steps, row.feasible)
    return checkpoints.result()


def joint_deltas(model: Clip, gradients: Gradients, layers: Sequence[Layer], step: float) -> Deltas:
    """Parameter name -> fp32 delta. Each layer moves along its forget gradient, by `step` times its norm."""
    deltas: Deltas = {}
    for layer in layers:
        moved = step_deltas(model, gradients, layer, step * ratio(model, gradients, layer))
        for name, delta in moved.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
    return deltas

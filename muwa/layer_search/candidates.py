"""Where a search by outputs starts: which layers are edited together, and their first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from muwa.layer_search.bisection import ParetoBisect
from muwa.layer_search.pareto import TOWERS, ScoredLayers
from muwa.layer_search.settings import OutputSettings
from muwa.layer_search.steps import ratio
from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import PROMPTS, Task
from muwa.types.gradients import Gradients
from muwa.types.ranges import Criterion, Granularity, Tower
from muwa.types.search import Evaluation, Layer

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip

FEW_NAMES = 20  # with at most this many names, top-5 accuracy says little


@dataclass(frozen=True)
class StartingPoint:
    """Layers that are edited together, one of each encoder, and the first step to try.

    Args:
        layers: Encoder -> its layer.
        first_step: The first step, in units of each layer's |theta| / |g_f|.
    """

    layers: Mapping[str, Layer]
    first_step: float

    @property
    def depth(self) -> float:
        """The mean depth of the layers, in [0, 1] from a tower's input to its output."""
        return sum(layer.depth for layer in self.layers.values()) / len(self.layers)


def starting_points(
    search: OutputSettings,
    model: Editable,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    scored: ScoredLayers,
) -> list[StartingPoint]:
    """The starting points of a search, the best first.

    With two encoders, the best layers of both are the first pair, the second best of both the second pair,
    and so on. A pair starts at the larger of its two first steps.

    Args:
        scored: The scores and fronts of the model's layers.
    """
    ranked = {}
    for encoder, layers in scored.layers.items():
        if search.start == "gain" or (search.start is None and gradients[encoder].whitened):
            ranked[encoder] = [(layer, search.first_step) for layer in scored.by_gain(encoder, TOWERS)]
            continue
        front = [(layers[name], search.first_step) for name in scored.fronts[encoder]]
        ranked[encoder] = front
        if search.start != "ratio" and task.kind != PROMPTS:  # a CLIP is searched by images
            clip = model.clips[encoder]
            best = _best_of_clip(search.granularity, clip, gradients[encoder], task, concept)
            ranked[encoder] = [(layers[name], step) for name, step in best] or front
    points = []
    for together in zip(*ranked.values(), strict=False):
        edited = {encoder: layer for encoder, (layer, _) in zip(ranked, together, strict=True)}
        points.append(StartingPoint(edited, max(step for _, step in together)))
    return points


def _best_of_clip(
    granularity: Granularity, clip: Clip, gradients: Gradients, task: Task, concept: str
) -> list[tuple[str, float]]:
    """Search the CLIP of one encoder by zero-shot accuracy; nothing is generated.

    Returns:
        For each layer, (its name, the relative step): the feasible step with the best kept rate. Layers are
        in the order of that rate, the best first. Layers without a feasible step are left out.
    """
    layers = {layer.name: layer for layer in clip.layers(granularity)}
    towers = [layer.tower for layer in layers.values()]
    names = len(task.probe.forget.classes.names)
    search = clip_search(granularity, cast(Tower, towers[0]), "top5" if names > FEW_NAMES else "top1")
    searched = search(clip, {"": gradients}, task, concept, run=Run())
    best: dict[str, Evaluation] = {}
    for row in searched.trace:
        name = row.candidate.layers[""]
        if row.feasible and (name not in best or row.kept > best[name].kept):
            best[name] = row
    order = sorted(best, key=lambda name: -best[name].kept)
    return [(name, best[name].step / ratio(clip, gradients, layers[name])) for name in order]


def clip_search(granularity: Granularity, tower: Tower, criterion: Criterion) -> ParetoBisect:
    """The search of a CLIP that ranks the layers of one encoder.

    Its settings are the paper's: ten steps per layer, from 0.1 |theta| / |g_f|, and a step is feasible if no
    forget image is recognised. The settings of the search by outputs are not used: they limit how many
    outputs are generated, and this search generates none.
    """
    return ParetoBisect(
        granularity=granularity,
        rule="constrained",
        tolerance=1.0,
        stranger=0.0,
        target=0.0,
        criterion=criterion,
        towers=(tower,),
        first_step=0.1,
        max_evals=10,
        candidates=None,
    )

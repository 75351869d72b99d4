"""What a search by outputs moves: one layer of each CLIP that a model holds, by the same fraction of its own norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from muwa.layer_search.bisection import pareto_bisect
from muwa.layer_search.pareto import pareto
from muwa.layer_search.scores import layer_scores
from muwa.layer_search.steps import kept, relative_size, step_deltas
from muwa.models.clip.model import Clip
from muwa.patch.names import ENCODERS
from muwa.types.data import Task
from muwa.types.edit import Edit, Move
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, LayerScore, Search

JOIN = " + "  # between the layers of several encoders in a name


class Holder(Protocol):
    """A model that holds CLIPs, of which it reads one tower each: a text-to-image pipeline, a vision-language model."""

    @property
    def clips(self) -> Mapping[str, Clip]:
        """Component ("text_encoder", "vision_tower") -> its CLIP, whose candidates are those that the model reads."""


@dataclass(frozen=True)
class Candidate:
    """What is moved together: one layer of each text encoder; `first` is the step to start at, of |theta| / |g_f|."""

    layers: Mapping[str, Layer]
    first: float

    @property
    def name(self) -> str:
        """As traces and reports say it: "transformer.resblocks.0.attn.out_proj.weight + text_encoder_2/..."."""
        return JOIN.join(full_name(encoder, layer.name) for encoder, layer in self.layers.items())


def full_name(encoder: str, layer: str) -> str:
    """A layer's name among those of all components: only those of a second text encoder need its name before them."""
    return f"{encoder}/{layer}" if encoder == ENCODERS[1] else layer


def ratio(clip: Clip, gradients: Gradients, layer: Layer) -> float:
    """|theta| / |g_f| over the scored parts: the step that would move the layer by its own norm.

    Raises:
        ValueError: Its forget gradient is zero.
    """

    def norm(of: Mapping[str, Tensor]) -> float:
        return sum(part.of(of).double().square().sum().item() for part in layer.scored) ** 0.5

    gradient = norm(gradients.forget)
    if gradient == 0:
        raise ValueError(f"{layer.name}: its forget gradient is zero, no step along it can forget anything")
    return norm(clip.weights) / gradient


def moved(model: Holder, gradients: Mapping[str, Gradients], layers: Mapping[str, Layer], step: float) -> Edit:
    """The edit that moves one layer of each encoder by the same fraction `step` of its |theta| / |g_f|."""
    deltas: dict[str, Tensor] = {}
    for encoder, layer in layers.items():
        clip = model.clips[encoder]
        own = step_deltas(clip, gradients[encoder], layer, step * ratio(clip, gradients[encoder], layer))
        deltas |= {full_name(encoder, name): delta for name, delta in own.items()}
    return Edit(deltas, ())


def edit_of(search: Search, model: Holder, gradients: Mapping[str, Gradients]) -> Edit:
    """The edit that a search on generations chose; an edit without deltas when it chose none."""
    if search.chosen is None:
        return Edit({}, (), (search,))
    row = search.trace[search.chosen]
    layers = {}
    for encoder, full in zip(model.clips, row.layer.split(JOIN), strict=True):
        name = full.rpartition("/")[2]
        layers[encoder] = next(one for one in model.clips[encoder].layers(search.granularity) if one.name == name)
    edit, moves = moved(model, gradients, layers, row.step), []
    for encoder, layer in layers.items():
        clip = model.clips[encoder]
        own = {
            name.rpartition("/")[2]: d
            for name, d in edit.deltas.items()
            if full_name(encoder, name.rpartition("/")[2]) == name
        }
        step = row.step * ratio(clip, gradients[encoder], layer)
        moves.append(
            Move(search.concept, layer.tower, full_name(encoder, layer.name), step, relative_size(clip, layer, own))
        )
    return Edit(edit.deltas, tuple(moves), (search,))


def deepest_of(candidate: Candidate) -> float:
    """How deep a candidate's layers sit: the mean of their depths."""
    return sum(layer.depth for layer in candidate.layers.values()) / len(candidate.layers)


def tower_of(clip: Clip, granularity: str) -> str:
    """The tower that a held CLIP's candidates are in: "text" or "vision"."""
    return clip.layers(granularity)[0].tower


def scored(
    model: Holder, gradients: Mapping[str, Gradients], granularity: str
) -> tuple[dict[str, LayerScore], dict[str, list[str]]]:
    """Scores of all candidates, and each encoder's front."""
    scores: dict[str, LayerScore] = {}
    fronts = {}
    for encoder, clip in model.clips.items():
        found = gradients[encoder]
        own = layer_scores(clip.weights, found.forget, found.retain, clip.layers(granularity))
        fronts[encoder] = pareto(own, tower_of(clip, granularity))
        scores |= {full_name(encoder, name): score for name, score in own.items()}
    return scores, fronts


def candidates_of(
    model: Holder, gradients: Mapping[str, Gradients], task: Task, concept: str, fronts: Mapping[str, Sequence[str]],
    start: str, first_step: float, granularity: str,
) -> list[Candidate]:  # fmt: skip
    """What to search, best first: of each encoder one layer of its front, with the relative step to start at."""
    ranked: dict[str, list[tuple[Layer, float]]] = {}
    for encoder, clip in model.clips.items():
        layers = {layer.name: layer for layer in clip.layers(granularity)}
        ranked[encoder] = [(layers[name], first_step) for name in fronts[encoder]]
        if start == "ratio":
            continue
        criterion = "top5" if len(task.probe.forget.classes.names) > 20 else "top1"  # of few names, five are no few
        found = pareto_bisect(clip, gradients[encoder], task.probe, concept, granularity=granularity,
                              towers=(tower_of(clip, granularity),),
                              criterion=criterion)  # fmt: skip
        best: dict[str, Evaluation] = {}
        for row in found.trace:
            if row.feasible and (row.layer not in best or kept(row) > kept(best[row.layer])):
                best[row.layer] = row
        order = sorted(best.values(), key=lambda row: -kept(row))
        steps = [(layers[row.layer], row.step / ratio(clip, gradients[encoder], layers[row.layer])) for row in order]
        ranked[encoder] = steps or ranked[encoder]
    out = []
    for together in zip(*ranked.values(), strict=False):
        out.append(Candidate({encoder: layer for encoder, (layer, _) in zip(ranked, together, strict=True)},
                             max(first for _, first in together)))  # fmt: skip
    return out

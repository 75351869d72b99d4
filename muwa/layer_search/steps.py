"""Steps along the forget gradient: what a step adds to the weights, its size, and the edit that takes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.patch.names import delta_key
from muwa.types.edit import Edit, Move
from muwa.types.search import LAMBDA, RELATIVE, Candidate, Layer, Search

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.clip.model import Clip
    from muwa.types.gradients import Gradients


def step_deltas(clip: Clip, gradients: Gradients, layer: Layer, step: float) -> dict[str, Tensor]:
    """`step * g_f` on the edited parts of one layer: parameter name -> fp32 delta, zero outside those parts.

    In SLUG's steps, this is the only place where a sign meets a weight. `g_f` is the gradient of the
    forget loss: a positive step raises that loss.
    """
    deltas: dict[str, Tensor] = {}
    for part in layer.edited:
        delta = deltas.setdefault(part.name, torch.zeros_like(clip.weights[part.name], dtype=torch.float32))
        part.of({part.name: delta}).copy_(step * part.of(gradients.forget))
    return deltas


def relative_size(clip: Clip, layer: Layer, deltas: Mapping[str, Tensor]) -> float:
    """|delta| / |theta| over the edited parts of a layer."""
    delta = sum(part.of(deltas).double().square().sum().item() for part in layer.edited)
    theta = sum(part.of(clip.weights).double().square().sum().item() for part in layer.edited)
    return (delta / theta) ** 0.5


def ratio(clip: Clip, gradients: Gradients, layer: Layer) -> float:
    """|theta| / |g_f| over the scored parts of a layer: the lambda that changes the layer by its own norm.

    It is what a step of 1 is in the unit `RELATIVE`.

    Raises:
        ValueError: The layer's forget gradient is zero, so no step along it changes anything.
    """

    def norm(tensors: Mapping[str, Tensor]) -> float:
        return sum(part.of(tensors).double().square().sum().item() for part in layer.scored) ** 0.5

    gradient = norm(gradients.forget)
    if gradient == 0:
        raise ValueError(f"{layer.name}: its forget gradient is zero, no step along it can forget anything")
    return norm(clip.weights) / gradient


def candidate_of(layers: Mapping[str, Layer]) -> Candidate:
    """The record of layers that are edited together.

    Args:
        layers: Encoder -> its layer. There is at least one layer, and all are of the same kind of tower.
    """
    names = {encoder: layer.name for encoder, layer in layers.items()}
    towers = [layer.tower for layer in layers.values()]
    return Candidate(names, towers[0], tuple(delta_key(encoder, name) for encoder, name in names.items()))


def edit_layers(
    model: Editable,
    gradients: Mapping[str, Gradients],
    layers: Mapping[str, Layer],
    step: float,
    *,
    unit: str,
    concept: str,
) -> Edit:
    """The edit that takes one step on one layer of each encoder.

    Args:
        gradients: Encoder -> the gradients of its CLIP.
        layers: Encoder -> its layer.
        step: The lambda of every layer (unit `LAMBDA`), or a fraction of each layer's |theta| / |g_f| (unit
            `RELATIVE`).
        unit: `LAMBDA` or `RELATIVE`.
        concept: The name that is forgotten, for the record.

    Returns:
        The edit, with one move per layer. The step of a move is a lambda. The name of a second text encoder
        stands before the names of its deltas and layers.

    Raises:
        ValueError: The unit is another one, or a layer's forget gradient is zero.
    """
    if unit not in (LAMBDA, RELATIVE):
        raise ValueError(
            f"step_unit: got {unit!r}, want {LAMBDA!r} or {RELATIVE!r}, the units of a step along a gradient"
        )
    deltas: dict[str, Tensor] = {}
    moves = []
    for encoder, layer in layers.items():
        clip, of_encoder = model.clips[encoder], gradients[encoder]
        size = step if unit == LAMBDA else step * ratio(clip, of_encoder, layer)
        added = step_deltas(clip, of_encoder, layer, size)
        deltas |= {delta_key(encoder, name): delta for name, delta in added.items()}
        name = delta_key(encoder, layer.name)
        moves.append(Move(concept, layer.tower, name, size, relative_size(clip, layer, added)))
    return Edit(deltas, tuple(moves))


def edit_of(search: Search, model: Editable, gradients: Mapping[str, Gradients]) -> Edit:
    """The edit of the step that a search chose, with a record of the search. No step gives no deltas.

    Args:
        model: The unedited model.
        gradients: Encoder -> the gradients that the search stepped along.
    """
    if search.chosen is None:
        return Edit({}, (), (search,))
    row = search.trace[search.chosen]
    layers = {encoder: _layer(model, encoder, name, search) for encoder, name in row.candidate.layers.items()}
    edit = edit_layers(model, gradients, layers, row.step, unit=row.step_unit, concept=search.concept)
    return replace(edit, searches=(search,))


def _layer(model: Editable, encoder: str, name: str, search: Search) -> Layer:
    """The layer of an encoder that has this name at the granularity of the search."""
    return next(layer for layer in model.clips[encoder].layers(search.granularity) if layer.name == name)


def add_edits(edits: Iterable[Edit]) -> Edit:
    """The sum of several edits of the same original model. Deltas of the same tensor are added.

    Source: SLUG (arXiv 2407.11867), several names at once: each has its own layer, and all are edited
    jointly.
    """
    total = Edit({}, ())
    for edit in edits:
        deltas = dict(total.deltas)
        for name, delta in edit.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
        total = replace(
            total, deltas=deltas, moves=total.moves + edit.moves, searches=total.searches + edit.searches
        )
    return total

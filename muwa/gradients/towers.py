"""Tensors of a tower inside another model, renamed as in the CLIP that the tower came from.

A pipeline's text encoder and the vision tower of a vision-language model have Hugging Face's parameter names.
Their CLIP may have other names, and may hold the query, key and value projections of a block in one weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.patch import names
from muwa.types.gradients import Moments

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip


def gradients_by_clip(clip: Clip, tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a tower's weights, by the names of its CLIP, as fp32 on the CPU.

    Args:
        tower: Parameter name in the tower -> gradient. All parameters of the tower must be there.

    Returns:
        A gradient for every weight of the CLIP; zero for the weights that the tower does not have.
    """
    weights = clip.weights
    renamed = names.tower_under_names_of(weights, tower)
    return {
        name: renamed[name].float().cpu().contiguous()
        if name in renamed
        else torch.zeros_like(w, dtype=torch.float32, device="cpu")
        for name, w in weights.items()
    }


def moments_by_clip(
    clip: Clip, tower: Iterable[str], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> Moments:
    """The moments of a tower's weights, by the names of its CLIP.

    Query, key and value projections have the same inputs. If the CLIP holds them in one weight, its input
    moment is theirs, and its output moment has their output moments as blocks on the diagonal.

    Args:
        tower: The names of all parameters of the tower.
        inputs, outputs: Parameter name in the tower -> second moment. A weight of the CLIP gets a moment if
            all its parts have one.
    """
    tower = list(tower)
    moments = Moments(inputs={}, outputs={})
    for name, weight in clip.weights.items():
        places = list(names.parts_in_target(name, weight, tower))
        if places and all(place in inputs for place in places):
            moments["inputs"][name] = inputs[places[0]].cpu()
        if places and all(place in outputs for place in places):
            moments["outputs"][name] = torch.block_diag(*(outputs[place].cpu() for place in places))
    return moments

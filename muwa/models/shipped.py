"""Load a larger model whose CLIP tower carries patches: the original tower is set in, the shipped one kept.

The CLIP of a pipeline or of a vision-language model is loaded on its own, without the patches. So the two
differ in the tensors that the record names, and only in these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from muwa.patch import names
from muwa.patch.ledger import tensor_keys
from muwa.patch.weights import same_bits
from muwa.types.request import Request

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip


def set_aside(
    parameters: Mapping[str, nn.Parameter], clip: Clip, requests: Sequence[Request], component: str
) -> dict[str, Tensor]:
    """Put the CLIP's own tensors in place of those that patches edited, and return the edited ones.

    Nothing is done if a tensor differs that no request names: then it is another CLIP's tower, or one that
    was trained on, which the caller refuses.

    Args:
        parameters: All parameters of the tower in the larger model.
        clip: The CLIP without the patches.
        component: The component that the tower is, as the names of the patches call it; the only tower counts
            as "text_encoder".

    Returns:
        Name in `parameters` -> the tensor with the patches.
    """
    every = dict.fromkeys((name for one in requests for name in one.tensors), torch.empty(0))
    edited = tensor_keys(names.by_component(every).get(component, ()))
    shipped: dict[str, Tensor] = {}
    original: dict[str, Tensor] = {}
    for name, weight in clip.weights.items():
        for place, part in names.parts_in_target(name, weight, parameters).items():
            tensor = parameters[place].detach()
            if same_bits(tensor, part):
                continue
            if not tensor_keys([name]) & edited:
                return {}
            shipped[place], original[place] = tensor.clone(), part
    with torch.no_grad():
        for place, part in original.items():
            parameters[place].copy_(part.to(parameters[place]))
    return shipped


def with_shipped(clip: Clip, tower: Mapping[str, Tensor], shipped: Mapping[str, Tensor]) -> Clip:
    """The CLIP with the patches that its tower in the larger model carries.

    Args:
        tower: Parameter name in the larger model -> tensor, for the whole tower with the patches.
        shipped: What `set_aside` returned.
    """
    own = names.tower_under_names_of(clip.weights, tower)
    touched = {
        name
        for name, tensor in own.items()
        if shipped.keys() & names.parts_in_target(name, tensor, tower).keys()
    }
    return clip.with_weights({name: own[name].to(clip.weights[name]) for name in touched})

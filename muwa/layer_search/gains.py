"""Score each layer by the gain of a whitened forget gradient: forgetting per change of what is retained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from muwa.models.clip.layers import as_matrix
from muwa.types.gradients import Moments, Whitened
from muwa.types.search import Layer, Part


def layer_gains(
    weights: Mapping[str, Tensor], forget: Mapping[str, Tensor], whitened: Whitened, layers: Sequence[Layer]
) -> dict[str, float]:
    """The gain of each layer whose scored weights all have an input moment.

        gain = <G, D> / (tr(S D C D^T) / tr(S W C W^T))^(1/2)

    G is the forget gradient of a weight W before it was whitened, and D the whitened one. C and S are the
    moments of the retained inputs of W and of the gradients at its outputs; without output moments, S = I.
    The gain is the first-order rise of the forget loss for a step along D that changes the retained outputs
    by as much as they are (in the metric of S). It depends on no scale of D, C or S.

    Args:
        weights: Parameter name -> weight.
        forget: Parameter name -> whitened forget gradient.
        whitened: The forget gradient before it was whitened, and the moments.
        layers: The layers to score. For a layer of several parts, both <G, D> and the squared relative
            changes are summed over the parts.

    Returns:
        Layer name -> gain >= 0. The gain is 0 where the gradient is zero.

    Source: muwa's own. D = S^-1 G C^-1 maximises the gain, which is then tr(G^T S^-1 G C^-1)^(1/2) up to the
    scale of the outputs. The metric is that of K-FAC (arXiv 1503.05671).
    """
    known = whitened.moments["inputs"]
    gains = {}
    for layer in layers:
        if all(part.name in known for part in layer.scored):
            rise = sum(_rise(part, forget, whitened.forget) for part in layer.scored)
            change = sum(_change(part, weights, forget, whitened.moments) for part in layer.scored)
            gains[layer.name] = max(0.0, rise) / change**0.5 if change > 0 else 0.0
    return gains


def _rise(part: Part, forget: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> float:
    """<G, D> over one part."""
    return (part.of(original).double().cpu() * part.of(forget).double().cpu()).sum().item()


def _change(
    part: Part, weights: Mapping[str, Tensor], forget: Mapping[str, Tensor], moments: Moments
) -> float:
    """tr(S D C D^T) / tr(S W C W^T) for D on one part of a weight, zero outside it."""
    direction = torch.zeros_like(forget[part.name])
    part.of({part.name: direction}).copy_(part.of(forget))
    base = _cost(part.name, weights[part.name], moments)
    return _cost(part.name, direction, moments) / base if base > 0 else 0.0


def _cost(name: str, change: Tensor, moments: Moments) -> float:
    """tr(S D C D^T) of a change D of one weight."""
    inputs = moments["inputs"][name]
    matrix = as_matrix(name, change).to(inputs)
    left = moments["outputs"][name] @ matrix if name in moments["outputs"] else matrix
    return (left * (matrix @ inputs)).sum().item()

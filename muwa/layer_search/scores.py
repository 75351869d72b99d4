"""Score each layer as a candidate to edit: importance for the forget loss, alignment with the retain loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from muwa.types.search import Layer, LayerScore, Part


def layer_scores(
    weights: Mapping[str, Tensor],
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor],
    layers: Sequence[Layer],
) -> dict[str, LayerScore]:
    """Score each layer by both gradients.

        importance = |g_f| / |theta|        alignment = |cos(g_f, g_r)|

    Norms and cosines are over all scored parts of a layer.

    Args:
        weights: Parameter name -> weights theta.
        forget: Parameter name -> mean gradient g_f of the forget loss, in the shape of the weights. A step
            along it raises the loss.
        retain: Parameter name -> mean gradient g_r of the retain loss, likewise.
        layers: The layers to score: `Clip.layers(granularity)`.

    Returns:
        Layer name -> `LayerScore`, in the order of `layers`. importance >= 0, in units of loss / |theta|^2;
        alignment in [0, 1]; 0 where either gradient is zero. `cosine` is the alignment with its sign.

    Raises:
        KeyError: A parameter has no gradient; names it.
        ValueError: Shapes differ, or a layer's weights are all zero; names the layer.

    Source: SLUG (arXiv 2407.11867), layer importance and gradient alignment; docs/method.md, "Scores". The
    absolute cosine is that of the release; the paper's formula keeps the sign. Differs: the release adds 1e-6
    to the product of norms. A layer with a zero gradient scores 0 here; the release fails.

    >>> import torch
    >>> one = {"w": torch.ones(4)}
    >>> layer = Layer("w", "text", 1.0, (Part("w"),), (Part("w"),))
    >>> got = layer_scores(one, {"w": 3 * torch.ones(4)}, one, [layer])
    >>> got["w"].importance, got["w"].alignment
    (3.0, 1.0)
    """
    return {layer.name: _score(layer, weights, forget, retain) for layer in layers}


def _score(
    layer: Layer, weights: Mapping[str, Tensor], forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]
) -> LayerScore:
    theta2 = forget2 = retain2 = dot = 0.0
    for part in layer.scored:
        theta, g_f, g_r = (_part(part, of) for of in (weights, forget, retain))
        if not theta.shape == g_f.shape == g_r.shape:
            raise ValueError(
                f"{layer.name}: weights {tuple(theta.shape)}, forget gradient {tuple(g_f.shape)} "
                f"and retain gradient {tuple(g_r.shape)} must have one shape"
            )
        theta, g_f, g_r = theta.double().cpu(), g_f.double().cpu(), g_r.double().cpu()
        theta2 += theta.square().sum().item()
        forget2 += g_f.square().sum().item()
        retain2 += g_r.square().sum().item()
        dot += (g_f * g_r).sum().item()
    if theta2 == 0:
        raise ValueError(
            f"{layer.name}: its weights are all zero, so its importance |g_f| / |theta| is not defined"
        )
    norms = (forget2 * retain2) ** 0.5
    cosine = max(-1.0, min(1.0, dot / norms)) if norms else 0.0
    return LayerScore(
        importance=(forget2 / theta2) ** 0.5,
        alignment=abs(cosine),
        cosine=cosine,
        weight_norm=theta2**0.5,
        forget_norm=forget2**0.5,
        retain_norm=retain2**0.5,
        tower=layer.tower,
    )


def _part(part: Part, of: Mapping[str, Tensor]) -> Tensor:
    if part.name not in of:
        raise KeyError(f"{part.name}: no gradient for it")
    return part.of(of)

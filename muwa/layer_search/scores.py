"""Score each layer as a candidate to edit: importance for the forget loss, alignment with the retain loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from muwa.types.search import Layer, LayerScore


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
        retain: Parameter name -> mean gradient g_r of the retain loss, likewise; empty if it was not taken.
        layers: The layers to score: `Clip.layers(granularity)`.

    Returns:
        Layer name -> `LayerScore`, in the order of `layers`. importance >= 0, in units of loss / |theta|^2;
        alignment in [0, 1]; 0 where either gradient is zero. `cosine` is the alignment with its sign. Both
        are None without a retain gradient.

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
    theta, g_f = _parts(layer, weights), _parts(layer, forget)
    _check_shapes(layer, "forget", theta, g_f)
    theta2, forget2 = _dot(theta, theta), _dot(g_f, g_f)
    if theta2 == 0:
        raise ValueError(
            f"{layer.name}: its weights are all zero, so its importance |g_f| / |theta| is not defined"
        )
    cosine = retain_norm = None
    if retain:
        g_r = _parts(layer, retain)
        _check_shapes(layer, "retain", theta, g_r)
        retain2 = _dot(g_r, g_r)
        norms = (forget2 * retain2) ** 0.5
        cosine = max(-1.0, min(1.0, _dot(g_f, g_r) / norms)) if norms else 0.0
        retain_norm = retain2**0.5
    return LayerScore(
        importance=(forget2 / theta2) ** 0.5,
        alignment=None if cosine is None else abs(cosine),
        cosine=cosine,
        weight_norm=theta2**0.5,
        forget_norm=forget2**0.5,
        retain_norm=retain_norm,
        tower=layer.tower,
    )


def _parts(layer: Layer, of: Mapping[str, Tensor]) -> list[Tensor]:
    """The scored parts of a layer, in fp64 on the CPU."""
    if missing := [part.name for part in layer.scored if part.name not in of]:
        raise KeyError(f"{missing[0]}: no gradient for it")
    return [part.of(of).double().cpu() for part in layer.scored]


def _check_shapes(layer: Layer, which: str, theta: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    for w, g in zip(theta, gradients, strict=True):
        if w.shape != g.shape:
            raise ValueError(
                f"{layer.name}: weights {tuple(w.shape)}, {which} gradient {tuple(g.shape)}; "
                "they must have one shape"
            )


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """<one, other>, summed over the parts of a layer."""
    return sum((a * b).sum().item() for a, b in zip(one, other, strict=True))

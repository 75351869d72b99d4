"""Whitened forget gradients: the direction that forgets most for a given change of what is retained.

Of all changes D of a weight matrix that raise the forget loss by the same first-order amount <G, D>, the one
that changes its outputs on the retain set least is D = G C^-1, with C = E[x x^T] over the retained inputs x.
Measured in the retain loss (Gauss-Newton, with K-FAC's Kronecker factors), it is D = S^-1 G C^-1, with
S = E[d d^T] over the gradients d at the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.gradients.base import GradientSource, Recipe
from muwa.models.clip.layers import as_matrix
from muwa.types.gradients import Gradients, Moments, Whitened

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Run
    from muwa.types.data import Task


@dataclass(frozen=True)
class Whitening:
    """The map G -> (S + d_S I)^-p G (C + d_C I)^-q of each weight matrix.

    C and S are first divided by their mean eigenvalues, so that both dampings have no unit.

    Args:
        damping: d_C, above 0. A small one leaves the retained outputs as they are, but allows long steps.
        output_damping: d_S, above 0.
        input_power: q, from 0 to 1.
        output_power: p, from 0 to 1; 0 leaves S out.

    Source: K-FAC (arXiv 1503.05671), section 3, there for the training loss. With q = 1 and p = 0 it has the
    form of closed-form model editing (ROME, arXiv 2202.05262, equation 2), there for one key and value.
    """

    damping: float
    output_damping: float
    input_power: float
    output_power: float

    def check(self) -> None:
        """Raise if a setting is out of range.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        for key, value in (("damping", self.damping), ("output_damping", self.output_damping)):
            if not 0 < value < float("inf"):
                raise ValueError(f"method.{key}: got {value}, want a number above 0")
        for key, value in (("input_power", self.input_power), ("output_power", self.output_power)):
            if not 0 <= value <= 1:
                raise ValueError(f"method.{key}: got {value}, want a power from 0 to 1")

    def __call__(self, forget: Mapping[str, Tensor], moments: Moments) -> dict[str, Tensor]:
        """The whitened forget gradient. Weights without an input moment keep their gradient.

        Args:
            forget: Weight name -> forget gradient, of the weight's shape.
        """
        whitened = dict(forget)
        for name, inputs in moments["inputs"].items():
            changed = forget[name].clone()
            view = as_matrix(name, changed)
            matrix = view.double().to(inputs.device) @ inverse_power(inputs, self.damping, self.input_power)
            if self.output_power:
                outputs = moments["outputs"][name]
                matrix = inverse_power(outputs, self.output_damping, self.output_power) @ matrix
            view.copy_(matrix)
            whitened[name] = changed
        return whitened


def inverse_power(moment: Tensor, damping: float, power: float) -> Tensor:
    """(M / mean eigenvalue of M + damping I)^-power in fp64, for a positive semi-definite M (k, k).

    >>> inverse_power(torch.diag(torch.tensor([3.0, 1.0])), 0.5, 1.0).diagonal()
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    moment = moment.double()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    scale = moment.trace() / len(moment)
    normalised = moment / scale if scale > 0 else moment
    if power == 1:
        return torch.cholesky_inverse(torch.linalg.cholesky(normalised + damping * identity))
    values, vectors = torch.linalg.eigh(normalised)
    return (vectors * (values.clamp(min=0) + damping) ** -power) @ vectors.T


@dataclass(frozen=True)
class WhitenedGradients(GradientSource):
    """The gradients of another source, with the whitened forget gradient in place of the forget gradient.

    Args:
        source: Where the gradients and the moments come from.
        whitening: The map from the one forget gradient to the other.
    """

    source: GradientSource
    whitening: Whitening

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if a setting is out of range, or if the other source does not fit.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        self.whitening.check()
        self.source.check(model, recipe, run)

    def __call__(
        self, model: Editable, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The gradients of each CLIP of `model`; None on worker ranks."""
        each = self.source(model, task, name, recipe, run)
        moments = self.moments(model, task, recipe, run, outputs=self.whitening.output_power > 0)
        if each is None or moments is None:
            return None
        return {encoder: self.whitened(one, moments[encoder]) for encoder, one in each.items()}

    def moments(
        self, model: Editable, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of the other source."""
        return self.source.moments(model, task, recipe, run, outputs=outputs)

    def whitened(self, gradients: Gradients, moments: Moments) -> Gradients:
        """The same gradients with the forget gradient whitened.

        Their origin names the whitening, so that a search on them has another cache key.
        """
        return replace(
            gradients,
            forget=self.whitening(gradients.forget, moments),
            origin={**gradients.origin, "whitening": repr(self.whitening)},
            whitened=Whitened(gradients.forget, moments),
        )

"""Whitened forget gradients: the direction that forgets most for a given change of what is retained.

Of all changes D of a weight matrix that raise the forget loss by the same first-order amount <G, D>, the one
that changes its outputs on the retain set least is D = G C^-1, with C = E[x x^T] over the retained inputs x.
Measured in the retain loss (Gauss-Newton, with K-FAC's Kronecker factors), it is D = S^-1 G C^-1, with
S = E[d d^T] over the gradients d at the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from scipy.optimize import nnls
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

    def __call__(
        self, forgets: Sequence[Mapping[str, Tensor]], rises: Sequence[float], moments: Moments
    ) -> dict[str, Tensor]:
        """The whitened direction for some names: sum over names i of w_i times the whitened G_i.

        For each weight matrix the factors w >= 0 are such that a step raises the forget loss of name i by at
        least `rises[i]`, up to a common factor, to first order. Of all directions that do so, this one costs
        least in the metric of C and S. With one name, w is 1. Weights without an input moment get the sum of
        the gradients, each times its rise.

        Args:
            forgets: For each name, weight name -> forget gradient, of the weight's shape.
            rises: How much the forget loss of each name is to rise, relative to the others; each above 0.
        """
        out = {}
        for name, first in forgets[0].items():
            gradients = [forget[name] for forget in forgets]
            direction = torch.zeros_like(first)
            if name in moments["inputs"]:
                device = moments["inputs"][name].device  # that of the model: a GPU where there is one
                matrices = torch.stack([as_matrix(name, g).to(device).double() for g in gradients])
                whitened = self._whitened(name, matrices, moments)
                factors = shares(matrices, whitened, rises)
                as_matrix(name, direction).copy_(torch.einsum("n,nij->ij", factors, whitened))
            else:
                for gradient, rise in zip(gradients, rises, strict=True):
                    direction += rise * gradient
            out[name] = direction
        return out

    def _whitened(self, name: str, gradients: Tensor, moments: Moments) -> Tensor:
        """(S + d_S I)^-p G (C + d_C I)^-q of each of the gradients (n, outputs, inputs) of one weight."""
        whitened = gradients @ inverse_power(moments["inputs"][name], self.damping, self.input_power)
        if self.output_power and name in moments["outputs"]:
            factor = inverse_power(moments["outputs"][name], self.output_damping, self.output_power)
            whitened = factor @ whitened
        return whitened


def shares(gradients: Tensor, whitened: Tensor, rises: Sequence[float]) -> Tensor:
    """The factors w (n,) of the names' whitened gradients in their joint direction, in fp64.

        minimise  w^T A w   subject to  A w >= rises,   A_ij = <G_i, D_j>

    <G_i, D_j> is the first-order rise of the forget loss of name i for a step along the whitened gradient D_j
    of name j, and w^T A w is the cost of the joint direction. The solution is that of non-negative least
    squares (its dual). With one name, w is 1; likewise where all gradients are zero.

    Args:
        gradients, whitened: G and D, (n, outputs, inputs) fp64.
        rises: (n,) numbers above 0.

    >>> one = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]], dtype=torch.float64)
    >>> shares(one, one, [4.0, 4.0]).round().tolist()
    [4.0, 1.0]
    """
    rise = (gradients.flatten(1) @ whitened.flatten(1).T).cpu()
    if len(gradients) == 1 or not rise.any():
        return torch.ones(len(gradients), dtype=torch.float64, device=gradients.device)
    rise = (rise + rise.T) / 2
    scale = rise.diagonal().mean().clamp(min=1e-300)
    root = torch.linalg.cholesky(rise / scale + 1e-9 * torch.eye(len(rise), dtype=torch.float64))
    wanted = torch.linalg.solve_triangular(root, torch.tensor(rises)[:, None].double(), upper=False)
    found, _ = nnls(root.T.numpy(), wanted[:, 0].numpy())
    return (torch.from_numpy(found) / scale).to(gradients.device)


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

    whitens: ClassVar[bool] = True

    source: GradientSource
    whitening: Whitening

    @property
    def reads_pairs(self) -> bool:
        """Whether the other source does."""
        return self.source.reads_pairs

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
        return {key: self.whitened([one], [1.0], moments[key]) for key, one in each.items()}

    def moments(
        self, model: Editable, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of the other source."""
        return self.source.moments(model, task, recipe, run, outputs=outputs)

    def whitened(self, names: Sequence[Gradients], rises: Sequence[float], moments: Moments) -> Gradients:
        """The gradients of one or several names, with the whitened direction as their forget gradient.

        Their origin names the whitening, so that a search on them has another cache key. `n_forget` is the
        number of pairs of all names. The retain gradient, if it was taken, is that of the first name: all
        names share it.

        Args:
            names: The gradients of each name, of one CLIP.
            rises: As in `Whitening`.
        """
        first = names[0]
        total = {key: sum((one.forget[key] for one in names[1:]), g) for key, g in first.forget.items()}
        about = {
            "forget_pairs": "+".join(one.origin["forget_pairs"] for one in names),
            "whitening": repr(self.whitening),
            "rises": repr(list(rises)),
        }
        return replace(
            first,
            forget=self.whitening([one.forget for one in names], rises, moments),
            n_forget=sum(one.n_forget for one in names),
            origin={**first.origin, **about},
            whitened=Whitened(total, moments),
        )

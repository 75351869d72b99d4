"""The input directions of each weight that the retain set uses most, and a forget gradient without them.

An edit dW of a linear map y = W x changes y by dW x. If the rows of dW are orthogonal to the inputs x of the
retain set, the outputs y of the retain set stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.gradients.accumulation import accumulate, full_batch_jobs
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.losses import by_name
from muwa.gradients.mean import shuffled_batches
from muwa.models.clip.layers import as_matrix, is_candidate, matrices
from muwa.run import Run
from muwa.types.gradients import Gradients, Moments

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.clip.model import Clip
    from muwa.types.data import Pairs, Task

KINDS = ("gradient", "fisher", "activations")


def fisher_moments(
    model: Clip, pairs: Pairs, *, loss: str, batch_size: int, seed: int, run: Run
) -> dict[str, Tensor]:
    """The sum over batches b of n_b G_b^T G_b for each weight matrix, (inputs, inputs) in fp32.

    G_b is the mean gradient of the n_b pairs of a batch, as (outputs, inputs). This is the input side of an
    empirical Fisher matrix, with batches for samples.

    Args:
        pairs: The retain set.
        loss, batch_size, seed: As in `muwa.gradients.base.BatchLoss`.
        run: Shows the progress.

    Source: the input factor of K-FAC (arXiv 1503.05671), here over batches.
    """
    batches = shuffled_batches(len(pairs), batch_size, seed)
    bar = run.track(batches, "fisher of the retain set", len(pairs), sizes=map(len, batches))
    moments: dict[str, Tensor] = {}
    for batch in bar:
        some = pairs.select(batch)
        gradients = accumulate(
            model, some, full_batch_jobs([range(len(some))]), by_name(loss), "one batch", run=Run()
        )
        for name in matrices(model.weights):
            gradient = as_matrix(name, gradients[name]) / len(some)
            moments[name] = moments.get(name, 0) + len(some) * gradient.T @ gradient
    return moments


def leading(moment: Tensor, *, rank: int | None, energy: float) -> Tensor:
    """The eigenvectors of the k largest eigenvalues of a second moment, as orthonormal columns (inputs, k).

    Args:
        moment: The second moment, (inputs, inputs).
        rank: The number k, at most the number of inputs minus one. None takes the smallest k whose
            eigenvalues sum to at least `energy` of the trace.
        energy: A fraction of the trace, used if `rank` is None.

    >>> leading(torch.diag(torch.tensor([1.0, 8.0, 1.0])), rank=None, energy=0.75).abs().T
    tensor([[0., 1., 0.]])
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.flip(0).clamp(min=0)
    if rank is None:
        fraction = values.cumsum(0) / values.sum().clamp(min=1e-300)
        rank = int((fraction < energy).sum()) + 1
    return vectors.flip(1)[:, : min(rank, len(values) - 1)].float()


@dataclass(frozen=True)
class ProjectedGradients(GradientSource):
    """The gradients of another source, with G_f (I - V V^T) in place of the forget gradient G_f.

    The columns of V (inputs, k) span the input directions that the retain set uses most (`leading`).

    Args:
        source: Where the gradients come from.
        subspace: What V is computed from. "gradient": the moment G_r^T G_r of the mean retain gradient G_r.
            "fisher": `fisher_moments` of the retain set. "activations": the input moments of the source.
        energy, rank: The number of columns of V, as in `leading`.
    """

    source: GradientSource
    subspace: str
    energy: float
    rank: int | None

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if a setting is out of range, or if the other source does not fit.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        if self.subspace not in KINDS:
            raise ValueError(f"method.subspace: got {self.subspace!r}, want one of {', '.join(KINDS)}")
        if not 0 < self.energy < 1:
            raise ValueError(f"method.energy: got {self.energy}, want a fraction above 0 and below 1")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"method.rank: got {self.rank}, want at least 1, or null to go by energy")
        self.source.check(model, recipe, run)

    def __call__(
        self, model: Editable, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The projected gradients of each CLIP of `model`; None on worker ranks."""
        each = self.source(model, task, name, recipe, run)
        moments = self._moments(model, task, recipe, run)
        if each is None or moments is None:
            return None
        return {encoder: self.projected(gradients, moments[encoder]) for encoder, gradients in each.items()}

    def moments(
        self, model: Editable, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of the other source."""
        return self.source.moments(model, task, recipe, run, outputs=outputs)

    def _moments(
        self, model: Editable, task: Task, recipe: Recipe, run: Run
    ) -> Mapping[str, Mapping[str, Tensor] | None] | None:
        """Encoder -> what the subspaces are computed from: moments, or None for "gradient".

        The moments of kind "fisher" are sums over batches. Without the pairs that mention a forgotten name
        the batches are others, so they are computed for each task.
        """
        if self.subspace == "activations":
            moments = self.source.moments(model, task, recipe, run, outputs=False)
            return None if moments is None else {key: one["inputs"] for key, one in moments.items()}
        if not run.is_main:
            return None
        if self.subspace == "gradient":
            return dict.fromkeys(model.clips)
        return {
            encoder: run.cached(
                "subspace",
                fisher_moments,
                clip,
                task.retain_pairs(),
                loss=recipe.retain_loss,
                batch_size=recipe.batch_size,
                seed=recipe.seed,
                _free={"run": run},
            )
            for encoder, clip in model.clips.items()
        }

    def projected(self, gradients: Gradients, moments: Mapping[str, Tensor] | None) -> Gradients:
        """The same gradients with G_f - (G_f V) V^T for each weight matrix that has a moment.

        Args:
            moments: Weight name -> its second moment. None takes G_r^T G_r, with the mean retain gradient
                G_r.

        Returns:
            The projected gradients. Their origin names the projection, so that a search on them has another
            cache key.
        """
        forget = dict(gradients.forget)
        if moments is None:
            names = [name for name, g in forget.items() if g.ndim > 1 and is_candidate(name, g)]
        else:
            names = list(moments)
        for name in names:
            g_r = as_matrix(name, gradients.retain[name])
            moment = g_r.T @ g_r if moments is None else moments[name]
            basis = leading(moment, rank=self.rank, energy=self.energy)
            changed = forget[name].clone()
            view = as_matrix(name, changed)
            view -= (view @ basis) @ basis.T
            forget[name] = changed
        about = {**gradients.origin, "without": f"{self.subspace}/{self.rank}/{self.energy}"}
        return Gradients(forget, gradients.retain, gradients.n_forget, gradients.n_retain, about)

"""The input directions of each weight that the retain set uses most, and a forget gradient without them.

An edit dW of a linear map y = W x changes y by dW x. If the rows of dW are orthogonal to the inputs x of the
retain set, the outputs y of the retain set stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muwa.gradients.accumulation import accumulate, full_batch_jobs
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.losses import by_name
from muwa.gradients.mean import shuffled_batches
from muwa.models.clip.embeddings import pixel_batches
from muwa.models.clip.layers import is_candidate
from muwa.run import Run
from muwa.types.gradients import Gradients

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.clip.model import Clip
    from muwa.types.data import Pairs, Task

KINDS = ("gradient", "fisher", "activations")
_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.bmm.default: 0}


def input_dim(name: str) -> int:
    """The input dimension of a weight: 0 for open_clip's projections (x @ W), else 1 (W @ x)."""
    return 0 if name in ("visual.proj", "text_projection", "text.text_projection") else 1


def as_matrix(name: str, tensor: Tensor) -> Tensor:
    """A view of a weight or gradient as (outputs, inputs). A convolution has channels x patch inputs."""
    return tensor.T if input_dim(name) == 0 else tensor.flatten(1)


def matrices(model: Clip) -> list[str]:
    """Names of the weights with input directions: those that may be edited and have at least 2 dimensions."""
    return [name for name, tensor in model.weights.items() if tensor.ndim > 1 and is_candidate(name, tensor)]


def second_moments(
    model: Clip, pairs: Pairs, *, kind: str, loss: str, batch_size: int, seed: int, run: Run
) -> dict[str, Tensor]:
    """The second moment of the inputs of each weight matrix, (inputs, inputs) in fp32.

    Args:
        pairs: The retain set.
        kind: "fisher" | "activations", see below.
        loss, batch_size, seed: As in `muwa.gradients.base.BatchLoss`.
        run: Shows the progress.

    The kinds:

    - "fisher": the sum over batches b of n_b G_b^T G_b. G_b is the mean gradient of the n_b pairs of a batch,
      as (outputs, inputs). This is the input side of an empirical Fisher matrix, with batches for samples.
    - "activations": the sum of x x^T over the inputs x of the weight, over all tokens and patches. Padding
      does not count if its tower ignores it. The inputs of a convolution are the pixels of its window.
      Weights without a matrix product have no moment.

    Source: "fisher" is the input factor of K-FAC (arXiv 1503.05671), here over batches. "activations" is that
    of gradient projection memory (arXiv 2103.09762), there for continual learning.
    """
    batches = shuffled_batches(len(pairs), batch_size, seed)
    bar = run.track(batches, f"{kind} of the retain set", len(pairs), sizes=map(len, batches))
    return _fisher(model, pairs, bar, loss) if kind == "fisher" else _activations(model, pairs, batches, bar)


def _fisher(model: Clip, pairs: Pairs, bar: Iterator[list[int]], loss: str) -> dict[str, Tensor]:
    """The kind "fisher" of `second_moments`."""
    moments: dict[str, Tensor] = {}
    for batch in bar:
        some = pairs.select(batch)
        gradients = accumulate(
            model, some, full_batch_jobs([range(len(some))]), by_name(loss), "one batch", run=Run()
        )
        for name in matrices(model):
            gradient = as_matrix(name, gradients[name]) / len(some)
            moments[name] = moments.get(name, 0) + len(some) * gradient.T @ gradient
    return moments


def _activations(
    model: Clip, pairs: Pairs, batches: list[list[int]], bar: Iterator[list[int]]
) -> dict[str, Tensor]:
    """The kind "activations" of `second_moments`."""
    moments: dict[str, Tensor] = {}
    images = [pairs.images[i] for batch in batches for i in batch]
    tokens = model.tokenize(list(pairs.captions))
    decoded = pixel_batches(model, images, [len(batch) for batch in batches])

    def add(name: str, x: Tensor) -> None:
        moments[name] = moments.get(name, 0) + x.T @ x

    with _unfused_attention(), torch.no_grad():
        short = model.tokenize(["a photo"])
        by_token, causal = _token_first(model, short), _ignores_padding(model, short)
        for batch, pixels in zip(bar, decoded, strict=True):
            counts = _not_padding(tokens[batch]) if causal else None

            def add_text(name: str, x: Tensor, counts: Tensor | None = counts) -> None:
                if counts is not None and len(x) == counts.numel():
                    x = x[(counts.T if name in by_token else counts).flatten().to(x.device)]
                add(name, x)

            with _WeightInputs(model, add_text):
                model.whole("text", tokens[batch])
            with _WeightInputs(model, add):
                model.whole("vision", pixels)
    return {name: moments[name].cpu() for name in matrices(model) if name in moments}


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Switch off the fused attention of `torch.nn.MultiheadAttention`, which hides its matrix products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _not_padding(tokens: Tensor) -> Tensor:
    """(n, length) bool: True up to the first of the equal tokens at the end of a text; the rest is padding.

    >>> _not_padding(torch.tensor([[8, 1, 9, 0, 0], [8, 1, 9, 9, 9], [8, 1, 2, 3, 9]])).int().tolist()
    [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    """
    length = tokens.shape[1]
    other = tokens != tokens[:, -1:]
    return torch.arange(length) <= (length - other.flip(1).int().argmax(1))[:, None]


def _ignores_padding(model: Clip, tokens: Tensor) -> bool:
    """Whether the text tower ignores padding: changing the last token of a short text changes no embedding.

    This is so in a causal tower.
    """
    if _not_padding(tokens)[0, -1]:
        return False
    other = tokens.clone()
    other[0, -1] = tokens[0, 1]
    before, after = (model.whole("text", one) for one in (tokens, other))
    return torch.allclose(before, after, atol=1e-5)


def _token_first(model: Clip, tokens: Tensor) -> set[str]:
    """Weights of the text tower whose inputs are ordered by token first, then by text (those of attention).

    They are found by encoding the same text twice: such inputs then come in equal pairs.
    """
    names = set()

    def look(name: str, x: Tensor) -> None:
        if len(x) == 2 * tokens.shape[1] and torch.allclose(x[::2], x[1::2], atol=1e-5):
            names.add(name)

    with _WeightInputs(model, look):
        model.whole("text", tokens.repeat(2, 1))
    return names


class _WeightInputs(TorchDispatchMode):
    """Calls `record(name, x)` for every product of inputs x (n, inputs), fp32, with a weight matrix.

    A weight is recognised by its address in memory.
    """

    def __init__(self, model: Clip, record: Callable[[str, Tensor], None]):
        super().__init__()
        self._names = {model.weights[name].data_ptr(): name for name in matrices(model)}
        self._record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            x, weight = args[_PRODUCTS[func] : _PRODUCTS[func] + 2]
            if name := self._names.get(weight.data_ptr()):
                self._record(name, x.flatten(0, -2).float())
        elif func is torch.ops.aten.convolution.default and args[1].ndim == 4:
            x, weight, _, stride, padding, dilation = args[:6]
            if name := self._names.get(weight.data_ptr()):
                windows = F.unfold(x, weight.shape[2:], dilation, padding, stride)
                self._record(name, windows.mT.flatten(0, 1).float())
        return func(*args, **(kwargs or {}))


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
            "fisher" or "activations": `second_moments` of the retain set.
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
        if each is None:
            return None
        return {
            encoder: self.projected(gradients, self.moments(model.clips[encoder], task, recipe, run))
            for encoder, gradients in each.items()
        }

    def moments(self, clip: Clip, task: Task, recipe: Recipe, run: Run) -> dict[str, Tensor] | None:
        """The second moments of `task.retain_pairs()`; None for "gradient".

        The kind "activations" is a sum over pairs. All tasks on the same data share the sum over the whole
        retain set. The sum over the pairs that mention a forgotten name is subtracted from it. The kind
        "fisher" is a sum over batches. Without those pairs the batches are others, so it is computed for each
        task.
        """
        if self.subspace == "gradient":
            return None
        if self.subspace == "fisher":
            return self._cached(clip, task.retain_pairs(), recipe, run)
        total = self._cached(clip, task.retain, recipe, run)
        if not task.mentions:
            return total
        mentions = self._cached(clip, task.retain.select(list(task.mentions)), recipe, run)
        return {name: moment - mentions[name] for name, moment in total.items()}

    def _cached(self, clip: Clip, pairs: Pairs, recipe: Recipe, run: Run) -> dict[str, Tensor]:
        """`second_moments` of some pairs, cached."""
        moments: dict[str, Tensor] = run.cached(
            "subspace",
            second_moments,
            clip,
            pairs,
            kind=self.subspace,
            loss=recipe.retain_loss,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            _free={"run": run},
        )
        return moments

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

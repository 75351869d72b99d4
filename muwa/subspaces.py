"""Which input directions of each weight the retained data uses most: a step that leaves them out leaves more as it was.

A linear map y = W x changes by dW x. Where the rows of dW are orthogonal to what x is on retained data, those y stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muwa.backward import accumulate, whole
from muwa.encode import pixel_batches
from muwa.gradients import plan
from muwa.losses import by_name
from muwa.models.clip import Clip
from muwa.models.layers import is_candidate
from muwa.progress import track
from muwa.types import Gradients, Pairs

KINDS = ("gradient", "fisher", "activations")
_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.bmm.default: 0}


def input_dim(name: str) -> int:
    """Which dimension of a weight is its input: 0 of open_clip's projections (x @ W), 1 of all others (x @ W^T)."""
    return 0 if name in ("visual.proj", "text_projection", "text.text_projection") else 1


def rows(name: str, tensor: Tensor) -> Tensor:
    """A weight, or a gradient of it, as (outputs, inputs); a convolution's inputs are channels x patch. A view."""
    return tensor.T if input_dim(name) == 0 else tensor.flatten(1)


def matrices(model: Clip) -> list[str]:
    """Names of the weights that have input directions: candidates to edit of two dimensions or more."""
    return [name for name, tensor in model.weights.items() if tensor.ndim > 1 and is_candidate(name, tensor)]


def second_moments(
    model: Clip, pairs: Pairs, *, kind: str, loss: str, batch_size: int, seed: int, progress: bool = False
) -> dict[str, Tensor]:
    """Of each weight matrix the (inputs, inputs) second moment, fp32, whose leading eigenvectors the retained data uses.

    Args:
        pairs: Retained pairs.
        kind: "fisher": sum over batches of n_b G_b^T G_b, G_b the batch's gradient as (outputs, inputs): the input side of
            an empirical Fisher matrix, by batches. "activations": sum of x x^T over the inputs x of the weight, of all
            tokens and patches (of a convolution: what its window covers); weights that meet no product have none.
        loss, batch_size, seed: Of the gradients, as in `muwa.gradients`.

    Source: Fisher: as the input factor of K-FAC (arXiv 1503.05671), of whole batches. Activations: gradient projection
    memory (arXiv 2103.09762), there for continual learning.
    """
    batches = plan(len(pairs), batch_size, seed)
    moments: dict[str, Tensor] = {}
    bar = track(batches, f"{kind} of retained pairs", len(pairs), show=progress, sizes=map(len, batches))
    if kind == "fisher":
        for batch in bar:
            some = pairs.select(batch)
            found = accumulate(model, some, whole([range(len(some))]), by_name(loss), "one batch")
            for name in matrices(model):
                gradient = rows(name, found[name]) / len(some)
                moments[name] = moments.get(name, 0) + len(some) * gradient.T @ gradient
        return moments
    images = [pairs.images[i] for batch in batches for i in batch]
    tokens = model.tokenize(list(pairs.captions))
    seen = _Inputs({model.weights[name].data_ptr(): name for name in matrices(model)})
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides its products
    try:
        with torch.no_grad():
            for batch, pixels in zip(bar, pixel_batches(model, images, [len(batch) for batch in batches]), strict=True):
                with seen:
                    model.whole("vision", pixels)
                    model.whole("text", tokens[batch])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return {name: seen.moments[name].cpu() for name in matrices(model) if name in seen.moments}


class _Inputs(TorchDispatchMode):
    """Sums x x^T of whatever is multiplied with a known weight (found by where it lies in memory)."""

    def __init__(self, known: Mapping[int, str]):
        super().__init__()
        self._known = known
        self.moments: dict[str, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            x, weight = args[_PRODUCTS[func] : _PRODUCTS[func] + 2]
            self._add(weight, lambda: x.flatten(0, -2))
        elif func is torch.ops.aten.convolution.default and args[1].ndim == 4:
            x, weight, _, stride, padding, dilation = args[:6]
            self._add(weight, lambda: F.unfold(x, weight.shape[2:], dilation, padding, stride).mT.flatten(0, 1))
        return func(*args, **(kwargs or {}))

    def _add(self, weight: Tensor, inputs: Callable[[], Tensor]) -> None:
        if name := self._known.get(weight.data_ptr()):
            x = inputs().float()
            self.moments[name] = self.moments.get(name, 0) + x.T @ x


def leading(moment: Tensor, *, rank: int | None, energy: float) -> Tensor:
    """(inputs, k) orthonormal: the eigenvectors of the largest eigenvalues of a second moment.

    Args:
        rank: k, at most the inputs less one; None: as many as hold `energy` of the trace.

    >>> leading(torch.diag(torch.tensor([1.0, 8.0, 1.0])), rank=None, energy=0.75).abs().T
    tensor([[0., 1., 0.]])
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.flip(0).clamp(min=0)
    if rank is None:
        share = values.cumsum(0) / values.sum().clamp(min=1e-300)
        rank = int((share < energy).sum()) + 1
    return vectors.flip(1)[:, : min(rank, len(values) - 1)].float()


def without(
    found: Gradients, moments: Mapping[str, Tensor] | None, *, kind: str, rank: int | None, energy: float
) -> Gradients:
    """The same gradients, the forget gradient without the leading input directions of the retained data: G - (G V) V^T.

    Args:
        moments: Of `second_moments`; None takes G_r^T G_r, of the mean retain gradient ("gradient").
        rank, energy: As in `leading`.

    Weights that have no moment keep their gradient; `origin` says what was taken out, so that a search of these is cached
    by itself.
    """
    forget = dict(found.forget)
    names = [name for name, g in forget.items() if g.ndim > 1 and is_candidate(name, g)] if moments is None else moments
    for name in names:
        g_r = rows(name, found.retain[name])
        basis = leading(g_r.T @ g_r if moments is None else moments[name], rank=rank, energy=energy)
        changed = forget[name].clone()
        view = rows(name, changed)
        view -= (view @ basis) @ basis.T
        forget[name] = changed
    about = {**found.origin, "without": f"{kind}/{rank}/{energy}"}
    return Gradients(forget, found.retain, found.n_forget, found.n_retain, about)

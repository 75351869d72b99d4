"""Which input directions of each weight the retained data uses most: a step that leaves them out leaves more as it was.

A linear map y = W x changes by dW x. Where the rows of dW are orthogonal to what x is on retained data, those y stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muwa.gradients.accumulation import accumulate, whole
from muwa.gradients.losses import by_name
from muwa.gradients.mean import plan
from muwa.models.clip.embeddings import pixel_batches
from muwa.models.clip.layers import is_candidate
from muwa.models.clip.model import Clip
from muwa.runtime.progress import track
from muwa.types.data import Pairs
from muwa.types.gradients import Gradients

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
            tokens and patches (of a convolution: what its window covers), but for padding that its tower does not look at;
            weights that meet no product have none.
        loss, batch_size, seed: Of the gradients, as in `muwa.gradients.mean`.

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
    with _products_in_sight(), torch.no_grad():
        short = model.tokenize(["a photo"])
        turned, padded = _token_first(model, short), _ignores_padding(model, short)
        for batch, pixels in zip(bar, pixel_batches(model, images, [len(batch) for batch in batches]), strict=True):
            used = _used(tokens[batch]) if padded else None

            def add(name: str, x: Tensor, used: Tensor | None = used) -> None:
                if used is not None and len(x) == used.numel():
                    x = x[(used.T if name in turned else used).flatten().to(x.device)]
                moments[name] = moments.get(name, 0) + x.T @ x

            with _Inputs(model, add):
                model.whole("text", tokens[batch])
            with _Inputs(model, lambda name, x: add(name, x, None)):
                model.whole("vision", pixels)
    return {name: moments[name].cpu() for name in matrices(model) if name in moments}


@contextmanager
def _products_in_sight() -> Iterator[None]:
    """Without the fused attention of `torch.nn.MultiheadAttention`, which hides its products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _used(tokens: Tensor) -> Tensor:
    """(n, length) bool: all tokens up to the first of the equal ones at the end, which are padding.

    >>> _used(torch.tensor([[8, 1, 9, 0, 0], [8, 1, 9, 9, 9], [8, 1, 2, 3, 9]])).int().tolist()
    [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    """
    length = tokens.shape[1]
    other = tokens != tokens[:, -1:]
    return torch.arange(length) <= (length - other.flip(1).int().argmax(1))[:, None]


def _ignores_padding(model: Clip, tokens: Tensor) -> bool:
    """Whether another token at the very end of a short text leaves its embedding as it is (a causal tower)."""
    if _used(tokens)[0, -1]:
        return False
    other = tokens.clone()
    other[0, -1] = tokens[0, 1]
    before, after = (model.whole("text", one) for one in (tokens, other))
    return torch.allclose(before, after, atol=1e-5)


def _token_first(model: Clip, tokens: Tensor) -> set[str]:
    """Weights of the text tower whose inputs come by token, then text (attention's), found with one text given twice."""
    found = set()

    def look(name: str, x: Tensor) -> None:
        if len(x) == 2 * tokens.shape[1] and torch.allclose(x[::2], x[1::2], atol=1e-5):
            found.add(name)

    with _Inputs(model, look):
        model.whole("text", tokens.repeat(2, 1))
    return found


class _Inputs(TorchDispatchMode):
    """Tells `hear` the name of each weight matrix that something is multiplied with (found by where it lies in memory),
    and the inputs: (rows, inputs), fp32."""

    def __init__(self, model: Clip, hear: Callable[[str, Tensor], None]):
        super().__init__()
        self._known, self._hear = {model.weights[name].data_ptr(): name for name in matrices(model)}, hear

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            x, weight = args[_PRODUCTS[func] : _PRODUCTS[func] + 2]
            if name := self._known.get(weight.data_ptr()):
                self._hear(name, x.flatten(0, -2).float())
        elif func is torch.ops.aten.convolution.default and args[1].ndim == 4:
            x, weight, _, stride, padding, dilation = args[:6]
            if name := self._known.get(weight.data_ptr()):
                windows = F.unfold(x, weight.shape[2:], dilation, padding, stride)
                self._hear(name, windows.mT.flatten(0, 1).float())
        return func(*args, **(kwargs or {}))


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

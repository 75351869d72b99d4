"""Second moments of each weight matrix on the retain set: of its inputs, and of the gradients at its outputs.

For a linear map y = W x, the input moment is E[x x^T] and the output moment E[d d^T], where d is the gradient
of the retain loss with respect to y. These are the two Kronecker factors of K-FAC (arXiv 1503.05671).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muwa.gradients.accumulation import accumulate, full_batch_jobs
from muwa.gradients.losses import by_name
from muwa.models.clip.embeddings import pixel_batches
from muwa.models.clip.layers import as_matrix, input_dim, matrices

if TYPE_CHECKING:
    from muwa.gradients.base import BatchLoss
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Pairs

Record = Callable[
    [str, Tensor, int], None
]  # (weight name, rows (n, k), the first row of the weight that is used)
Sums = dict[str, Tensor]  # weight name -> a sum of outer products, (k, k) in fp32


_PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1, torch.ops.aten.bmm.default: 0}


class WeightProducts(TorchDispatchMode):
    """Sees the inputs of weight matrices (forward) and the gradients at their outputs (backward).

    A weight is recognised by its address in memory, so the pass must use these tensors, not copies of them.
    It may use some of their rows only (the query of a fused attention weight).

    Args:
        weights: Name -> weight.
        inputs: Called with the inputs x (n, inputs) of a weight, for every product of x with it.
        outputs: Called with the gradients d (n, rows) at its outputs, for every product of d with a weight.
            None ignores the backward pass. The first weight of a tower, whose inputs are no function of other
            weights, has such a product only if it is a convolution.
    """

    def __init__(self, weights: Mapping[str, Tensor], inputs: Record | None, outputs: Record | None = None):
        super().__init__()
        self._weights = sorted((tensor.data_ptr(), name, tensor) for name, tensor in weights.items())
        self._starts = [start for start, *_ in self._weights]
        self._inputs, self._outputs = inputs, outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            self._product(*args[_PRODUCTS[func] : _PRODUCTS[func] + 2])
        elif func is torch.ops.aten.convolution.default and args[1].ndim == 4:
            self._convolution(*args[:6])
        elif func is torch.ops.aten.convolution_backward.default and args[2].ndim == 4:
            found = self._found(args[2])
            if found and self._outputs:
                self._outputs(found[0], args[0].movedim(1, -1).flatten(0, -2).float(), 0)
        return func(*args, **(kwargs or {}))

    def _found(self, tensor: Tensor) -> tuple[str, Tensor, int] | None:
        """The weight that a tensor is, or is some rows of: its name, itself, and the first of the rows."""
        at = bisect_right(self._starts, tensor.data_ptr()) - 1
        if at < 0:
            return None
        start, name, weight = self._weights[at]
        row = (tensor.data_ptr() - start) // (weight.element_size() * weight.stride(0))
        return (name, weight, row) if row < len(weight) else None

    def _product(self, left: Tensor, right: Tensor) -> None:
        """`left @ right`: one of them may be a weight."""
        found, rows = self._found(right), left
        if not found and (found := self._found(left)):
            rows, right = right.mT, left.mT  # (x W)^T was computed as W^T x^T
        if not found:
            return
        name, weight, row = found
        stored = right.stride()[-2:] == weight.stride()  # not transposed
        forward = stored == (input_dim(name) == 0)
        if record := self._inputs if forward else self._outputs:
            record(name, rows.flatten(0, -2).float(), row)

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
    ) -> None:
        found = self._found(weight)
        if found and self._inputs:
            windows = F.unfold(x, weight.shape[2:], dilation, padding, stride)
            self._inputs(found[0], windows.mT.flatten(0, 1).float(), 0)


def adder(sums: Sums, *, outputs: bool = False) -> Record:
    """A `Record` that adds x^T x to `sums`; those of some outputs only are added to their block."""

    def add(name: str, x: Tensor, row: int) -> None:
        block = slice(row, row + x.shape[1]) if outputs else slice(None)
        sums[name][block, block].addmm_(x.T, x)

    return add


def minus(sums: Sums, others: Sums, factor: float = 1.0) -> Sums:
    """`sums - factor * others`, for each weight. A weight that is not in `others` has a sum of zero there."""
    return {name: total - factor * others[name] if name in others else total for name, total in sums.items()}


def clip_input_sums(model: Clip, pairs: Pairs, *, batch_size: int, run: Run) -> Sums:
    """The sum of x x^T over the inputs x of each weight of a CLIP, over all tokens and patches.

    Padding does not count if its tower ignores it. The inputs of a convolution are the pixels of its window.
    Weights without a matrix product have no sum.

    Args:
        batch_size: Pairs that are encoded at once. It changes the result by rounding only.
        run: Its processes share the pairs. All of them must call this, and all of them get the sum.

    Source: the activation moments of gradient projection memory (arXiv 2103.09762); the input factor of K-FAC
    (arXiv 1503.05671).
    """
    share = run.distributed.share(len(pairs))
    mine = pairs.select(share)
    batches = [range(i, min(i + batch_size, len(mine))) for i in range(0, len(mine), batch_size)]
    tokens = model.tokenize(list(pairs.captions))[list(share)]  # a rank may have no pair of its own
    weights = {name: model.weights[name] for name in matrices(model.weights)}
    sums = {name: _zeros(name, weight, 1) for name, weight in weights.items()}
    add, add_text = adder(sums), _text_adder(model, sums)
    sizes = [len(batch) for batch in batches]
    decoded = pixel_batches(model, mine.images, sizes)
    bar = run.track(batches, "moments of the retain set", len(mine), sizes=sizes)
    with unfused_attention(), torch.no_grad():
        for batch, pixels in zip(bar, decoded, strict=True):
            some = tokens[list(batch)]
            with WeightProducts(weights, add_text(some)):
                model.whole("text", some)
            with WeightProducts(weights, add):
                model.whole("vision", pixels)
    return _over_ranks(sums, run)


def _text_adder(model: Clip, sums: Sums) -> Callable[[Tensor], Record]:
    """Tokens (n, length) -> a `Record` that adds the inputs on these tokens to `sums`, without padding."""
    add, short = adder(sums), model.tokenize(["a photo"])
    by_token, causal = _token_first(model, short), _ignores_padding(model, short)

    def adder_of(tokens: Tensor) -> Record:
        counts = _not_padding(tokens) if causal else None

        def add_text(name: str, x: Tensor, row: int) -> None:
            if counts is not None and len(x) == counts.numel():
                x = x[(counts.T if name in by_token else counts).flatten().to(x.device)]
            add(name, x, row)

        return add_text

    return adder_of


def clip_output_sums(
    model: Clip,
    pairs: Pairs,
    batches: Sequence[Sequence[int]],
    loss: BatchLoss,
    *,
    micro_batch_size: int | None,
    run: Run,
) -> Sums:
    """The sum of d d^T over the gradients d of a batch loss at the outputs of each weight of a CLIP.

    Args:
        batches: The indices of the pairs in each batch.
        loss: The loss of a batch.
        micro_batch_size: Pairs that are encoded at once; None takes whole batches. It changes the result by
            rounding only.
        run: Its processes share each batch. All of them must call this, and all of them get the sum.

    Source: the output factor of K-FAC (arXiv 1503.05671), with the labels of the data (the empirical Fisher
    matrix).
    """
    weights = {name: model.weights[name] for name in matrices(model.weights)}
    sums = {name: _zeros(name, weight, 0) for name, weight in weights.items()}
    with unfused_attention(), WeightProducts(weights, None, adder(sums, outputs=True)):
        accumulate(
            model,
            pairs,
            full_batch_jobs(batches),
            by_name(loss.name),
            "output moments of the retain set",
            micro_batch_size=micro_batch_size,
            run=run,
        )
    return _over_ranks(sums, run)


def _zeros(name: str, weight: Tensor, dim: int) -> Tensor:
    """A sum over nothing for the outputs (dim 0) or the inputs (dim 1) of a weight."""
    size = as_matrix(name, weight).shape[dim]
    return torch.zeros(size, size, device=weight.device)


def _over_ranks(sums: Sums, run: Run) -> Sums:
    """The sums of all ranks, on the CPU, without those of weights that no product was seen of."""
    run.distributed.add(sums.values())
    return {name: total.cpu() for name, total in sums.items() if total.any()}


@contextmanager
def unfused_attention() -> Iterator[None]:
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

    def look(name: str, x: Tensor, row: int) -> None:
        if len(x) == 2 * tokens.shape[1] and torch.allclose(x[::2], x[1::2], atol=1e-5):
            names.add(name)

    with WeightProducts({name: model.weights[name] for name in matrices(model.weights)}, look):
        model.whole("text", tokens.repeat(2, 1))
    return names

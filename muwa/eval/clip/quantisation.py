"""Does the forgotten come back when the weights are rounded, as they are when a model is made small or fast?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from muwa.eval.clip.accuracy import accuracy
from muwa.models.clip.embeddings import Features
from muwa.types.data import Task
from muwa.types.metric import Metric

BITS = {"int8": 8, "int4": 4}
CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TRANSPOSED = ("visual.proj", "text_projection")  # open_clip multiplies by these from the right: channels are columns


def quantisation(
    features: Features, task: Task, *, kinds: Sequence[str] = ("int8", "int4", "bf16", "fp16")
) -> dict[str, Metric]:
    """`quantised/<kind>_forget_top5` (lower is better) and `quantised/<kind>_retain_top1` of the model, rounded.

    Args:
        kinds: Some of int8, int4 (`rounded`), bf16, fp16 (weights cast there and back; activations stay fp32).

    Raises:
        ValueError: Another kind; before any compute.

    Source: Zhang et al. (arXiv 2410.16454): 4-bit rounding brings back what some methods only hid. Differs: weights of a
    CLIP, rounded to the nearest, without calibration data.
    """
    if wrong := [kind for kind in kinds if kind not in (*BITS, *CASTS)]:
        raise ValueError(f"eval.quantisation.kinds: got {wrong[0]!r}, want some of {', '.join((*BITS, *CASTS))}")
    found: dict[str, Metric] = {}
    for kind in kinds:
        model = features.model.with_weights(converted(features.model.weights, kind))
        seen = Features(model, features.store, progress=features.progress)
        after = f" after its weights were rounded to {kind}"
        forgotten = "share of held-out pictures of the forgotten whose own name is among the first {k} of {n}" + after
        others = "share of held-out pictures of the other names recognised among {n} names" + after
        found[f"quantised/{kind}_forget_top5"] = accuracy(seen, task.eval.forget, 5, "lower", forgotten)
        found[f"quantised/{kind}_retain_top1"] = accuracy(seen, task.eval.retain, 1, "higher", others)
    return found


def converted(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Those of `weights` that `kind` changes, rounded and fp32 again; integers leave vectors (biases, norms) alone."""
    if kind in CASTS:
        return {name: tensor.to(CASTS[kind]).to(tensor.dtype) for name, tensor in weights.items()}
    return {
        name: rounded(tensor, BITS[kind], 1 if name in _TRANSPOSED else 0)
        for name, tensor in weights.items()
        if tensor.ndim >= 2
    }


def rounded(weight: Tensor, bits: int, channel: int = 0) -> Tensor:
    """`scale * round(w / scale)`, symmetric: `scale = max |w| / (2^(bits - 1) - 1)` of each channel.

    Args:
        weight: Any shape of two dimensions or more.
        channel: The dimension that each has its own scale along: the output channels.

    >>> rounded(torch.tensor([[1.0, -7.0, 3.4], [0.0, 0.0, 0.0]]), 4).tolist()
    [[1.0, -7.0, 3.0], [0.0, 0.0, 0.0]]
    """
    others = [dim for dim in range(weight.ndim) if dim != channel]
    scale = weight.abs().amax(others, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)

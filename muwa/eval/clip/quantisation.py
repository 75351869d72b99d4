"""Does the target come back when the weights are rounded, as they are to make a model small or fast?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from muwa.eval.base import Measure
from muwa.eval.clip.accuracy import accuracy
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.data import Task
from muwa.types.metric import Metric, Reading

BITS = {"int8": 8, "int4": 4}
CASTS = {"bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = (*BITS, *CASTS)
_TRANSPOSED = ("visual.proj", "text_projection")  # open_clip's: x @ w, so output channels are columns
_SECTION = "With rounded weights"


@dataclass(frozen=True)
class Quantisation(Measure):
    """`quantised/<kind>_forget_top5` (lower is better), `quantised/<kind>_retain_top1` of the rounded model.

    Args:
        kinds: Some of "int8", "int4" (see `rounded`), "bf16", "fp16" (weights are cast to that type and back;
            activations stay fp32).

    Raises:
        ValueError: A kind is unknown (`check`).

    Source: Zhang et al. (arXiv 2410.16454): 4-bit rounding brings back what some methods only hid. Differs:
    weights of a CLIP, rounded to the nearest, without calibration data.
    """

    observes: ClassVar[type[Observer]] = Features

    kinds: Sequence[Literal["int8", "int4", "bf16", "fp16"]]

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a kind of rounding is unknown."""
        if wrong := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"eval.quantisation.kinds: got {wrong[0]!r}, want some of {', '.join(KINDS)}")

    def __call__(self, features: Features, task: Task) -> dict[str, Metric]:
        """See the class."""
        metrics: dict[str, Metric] = {}
        for kind in self.kinds:
            model = features.model.with_weights(converted(features.model.weights, kind))
            of_rounded = Features(model, features.run)
            after = f"after the model's weights were rounded to {kind}"
            of_forgotten = Reading(
                "fraction of held-out images of the target whose right name is among the model's first five "
                f"guesses, of {len(task.eval.forget.classes.names)} names, {after}",
                better="lower",
                section=_SECTION,
            )
            of_others = Reading(
                "fraction of held-out images of the other names recognised (top 1) among "
                f"{len(task.eval.retain.classes.names)} names {after}",
                section=_SECTION,
            )
            metrics[f"quantised/{kind}_forget_top5"] = accuracy(of_rounded, task.eval.forget, 5, of_forgotten)
            metrics[f"quantised/{kind}_retain_top1"] = accuracy(of_rounded, task.eval.retain, 1, of_others)
        return metrics


def converted(weights: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The weights that `kind` rounds, in fp32; int8 and int4 leave vectors (biases, norms) alone."""
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
        channel: The dimension of the output channels; each channel has its own scale.

    >>> rounded(torch.tensor([[1.0, -7.0, 3.4], [0.0, 0.0, 0.0]]), 4).tolist()
    [[1.0, -7.0, 3.0], [0.0, 0.0, 0.0]]
    """
    others = [dim for dim in range(weight.ndim) if dim != channel]
    scale = weight.abs().amax(others, keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)

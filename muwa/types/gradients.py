"""Mean gradients of the forget and the retain loss, as they pass from the gradient stage to the layer search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from muwa.fingerprint import Content, digest


@dataclass(frozen=True)
class Gradients(Content):
    """Mean gradients of both losses at the unedited weights: parameter name -> tensor of the parameter's shape.
    Sign: of the loss itself (a step *along* `forget` raises it). `n_*` pairs gave each mean. `origin`: their inputs.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]
    n_forget: int
    n_retain: int
    origin: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Of what they were computed from (gradients are a function of it)."""
        return digest([f"{key}={self.origin[key]}" for key in sorted(self.origin)])

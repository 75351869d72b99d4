"""Mean gradients of the forget and the retain loss: the input of a layer search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from muwa.fingerprint import Content, digest


@dataclass(frozen=True)
class Gradients(Content):
    """Mean gradients of the forget and the retain loss, at the unedited weights.

    Args:
        forget, retain: Parameter name -> gradient of the loss itself, of the parameter's shape. A step along
            `forget` raises the forget loss.
        n_forget, n_retain: The number of pairs that each gradient is the mean over.
        origin: Input -> fingerprint or value: everything that the gradients were computed from.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]
    n_forget: int
    n_retain: int
    origin: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """Digest of `origin`, which determines the gradients."""
        return digest([f"{key}={self.origin[key]}" for key in sorted(self.origin)])

"""Mean gradients of the forget and the retain loss: the input of a layer search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from muwa.fingerprint import Content, digest
from muwa.types.finite import check_finite
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from torch import Tensor

FORGET_ALONE = {"retain_gradient": "not taken"}  # in `Gradients.origin`, if there is no retain gradient


class Moments(TypedDict):
    """Second moments of the weight matrices of one CLIP on retained data, each up to a positive factor.

    `inputs`: weight name -> the sum of x x^T over the inputs x of the weight, (inputs, inputs).
    `outputs`: weight name -> the sum of d d^T over the gradients d of the retain loss at the outputs of the
    weight, (outputs, outputs); empty if they were not asked for.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(frozen=True)
class Whitened:
    """What a whitened forget gradient was made from. Layers are scored by it.

    Args:
        forget: Parameter name -> the forget gradient before it was whitened.
        moments: The moments that it was whitened with.
    """

    forget: Mapping[str, Tensor]
    moments: Moments

    __repr__ = short_repr


@dataclass(frozen=True)
class Gradients(Content):
    """Mean gradients of the forget and the retain loss, at the unedited weights.

    Args:
        forget, retain: Parameter name -> gradient of the loss itself, of the parameter's shape. A step along
            `forget` raises the forget loss. `retain` is empty if it was not taken.
        n_forget, n_retain: The number of pairs that each gradient is the mean over; 0 if it was not taken.
        origin: Input -> fingerprint or value: everything that the gradients were computed from.
        whitened: What `forget` was made from if it is whitened (`muwa.gradients.whitening`), else None.

    Raises:
        ValueError: A gradient holds NaN or infinity. Names the parameter.
    """

    forget: Mapping[str, Tensor]
    retain: Mapping[str, Tensor]
    n_forget: int
    n_retain: int
    origin: Mapping[str, str]
    whitened: Whitened | None = None

    __repr__ = short_repr

    def __post_init__(self) -> None:
        check_finite(self.forget, "forget gradient of")
        check_finite(self.retain, "retain gradient of")

    def without_retain(self) -> Gradients:
        """The same forget gradient without a retain gradient."""
        return replace(self, retain={}, n_retain=0, origin={**self.origin, **FORGET_ALONE})

    @property
    def fingerprint(self) -> str:
        """Digest of `origin`, which determines the gradients."""
        return digest([f"{key}={self.origin[key]}" for key in sorted(self.origin)])

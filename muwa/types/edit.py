"""An edit: what to add to the weights, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muwa.types.search import Search
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Move:
    """The step on one layer that an edit takes to forget one name.

    Args:
        concept: The name to forget.
        tower: "vision" | "text" | `BOTH_TOWERS` | "unet".
        layer: The name of the layer.
        step: The factor of the gradient, or another size of the step that the method states.
        relative_norm: |delta| / |theta| of the layer.
    """

    concept: str
    tower: str
    layer: str
    step: float
    relative_norm: float


@dataclass(frozen=True)
class Edit:
    """What to add to the weights, and how it was found.

    Args:
        deltas: Parameter name -> what is added to the parameter, fp32, of its shape.
        moves: The steps that make up the deltas.
        searches: The layer searches that chose them; empty for a method without a search.
        samples: The number of training pairs whose gradient was taken; a pair counts once per pass.
    """

    deltas: Mapping[str, Tensor]
    moves: tuple[Move, ...]
    searches: tuple[Search, ...] = ()
    samples: int = 0

    __repr__ = short_repr

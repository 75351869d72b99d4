"""An edit: what to add to the weights, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from muwa.types.search import Search


@dataclass(frozen=True)
class Move:
    """One layer's step for one name, part of an edit."""

    concept: str
    tower: str
    layer: str
    step: float
    relative_norm: float


@dataclass(frozen=True)
class Edit:
    """What to add to the weights: parameter name -> fp32 delta of the parameter's shape; and how it came about."""

    deltas: Mapping[str, Tensor]
    moves: tuple[Move, ...]
    searches: tuple[Search, ...] = ()
    samples: int = 0  # training pairs whose gradient was taken, each counted once a pass

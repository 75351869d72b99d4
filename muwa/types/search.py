"""Layers that can be edited, their scores, and what a layer search tried and chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A slice of one weight tensor: `length` rows (dim 0) or columns (dim 1) from `start`; the whole when length is 0."""

    name: str
    dim: int = 0
    start: int = 0
    length: int = 0

    def of(self, weights: Mapping[str, Tensor]) -> Tensor:
        """This slice of `weights[name]`: a view, not a copy."""
        tensor = weights[self.name]
        return tensor.narrow(self.dim, self.start, self.length) if self.length else tensor


@dataclass(frozen=True)
class Layer:
    """A candidate to edit. `scored` gives its importance and alignment; `edited` is what moves when it is chosen.

    They differ only for Hugging Face models, where the release scores one of q/k/v (or fc1/fc2) and edits all.
    `depth` is in [0, 1], from the tower's input to its output.
    """

    name: str
    tower: str  # "vision" | "text"
    depth: float
    scored: tuple[Part, ...]
    edited: tuple[Part, ...]


@dataclass(frozen=True)
class LayerScore:
    """importance = |g_f| / |theta| (>= 0); alignment = |cos(g_f, g_r)| in [0, 1]; cosine keeps its sign."""

    importance: float
    alignment: float
    cosine: float
    weight_norm: float
    forget_norm: float
    retain_norm: float
    tower: str


@dataclass(frozen=True)
class Evaluation:
    """One step of a search: what was tried and what it did to the probe pictures (rates in [0, 1])."""

    layer: str
    tower: str
    iteration: int  # 1, 2, ... within its layer
    step: float  # lambda in theta + lambda * g_f
    relative_norm: float  # |lambda * g_f| / |theta| of the edited parts
    forget_top1: float
    forget_top5: float
    forget_cosine: float
    retain_top1: float
    utility_top1: float
    feasible: bool  # the forget accuracy that decides is at or below the target


@dataclass(frozen=True)
class Search:
    """All that a layer search found for one name. `chosen` is an index into `trace`, None when nothing was feasible."""

    concept: str
    rule: str
    granularity: str
    scores: Mapping[str, LayerScore]
    front: tuple[str, ...]
    before: Evaluation
    trace: tuple[Evaluation, ...]
    chosen: int | None
    why: str  # one sentence: why this step, or why none

"""Layers that can be edited, their scores, and what a layer search tried and chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


LAMBDA = "lambda"  # the unit of a step: the factor of the forget gradient in theta + lambda * g_f
RELATIVE = (
    "|theta|/|g_f|"  # the unit of a step: a fraction of the lambda that would move the layer by its own norm
)
ALL_WEIGHTS = "all weights"  # the "layer" of an edit that is not limited to one
BOTH_TOWERS = "both"  # the "tower" of an edit that is not limited to one


@dataclass(frozen=True)
class Candidate:
    """What one step of a search edits: one layer of each encoder.

    Args:
        layers: Encoder -> the name of its layer. The encoder is "" for a CLIP, else the name of the component that holds
            the CLIP's tower ("text_encoder", "text_encoder_2", "vision_tower"). Empty for the unedited model.
        tower: "vision" | "text" | `BOTH_TOWERS`; "" for the unedited model.
        names: The same layers as reports and traces write them. A layer of a second text encoder has the encoder's name
            before it.
    """

    layers: Mapping[str, str]
    tower: str
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """All layers in one text, for display only: "transformer.resblocks.0.attn.out_proj.weight + text_encoder_2/...".

        >>> Candidate({"": "visual.proj"}, "vision").name, Candidate({}, "").name
        ('visual.proj', '')
        """
        return " + ".join(self.names or self.layers.values())


NOTHING_EDITED = Candidate({}, "")


@dataclass(frozen=True)
class Evaluation:
    """One step of a search: what was tried, and what it did to the probe images (or answers). Rates are in [0, 1].

    Args:
        iteration: 1, 2, ... within its candidate; 0 for the unedited model.
        step: How far it went, in `step_unit`: `LAMBDA`, `RELATIVE`, or what the method says ("learning rate").
        relative_norm: |delta| / |theta| over the edited parts.
        feasible: Whether the forget rate that decides is at or below the target.
        forgotten: The forget rate that decides (top-1 or top-5): 0 is forgotten.
        kept: The mean of the retain and the utility rate.
        kept_error: The standard error of `kept`, from the binomial variances of its two rates.
        closeness: How close the forget samples still are to their name (a mean cosine). Of steps that keep as much, the
            one with the lowest closeness is chosen.
        metrics: All rates by name. A zero-shot search gives forget_top1, forget_top5, forget_cosine, retain_top1 and
            utility_top1; another search may give others.
    """

    candidate: Candidate
    iteration: int
    step: float
    step_unit: str
    relative_norm: float
    feasible: bool
    forgotten: float
    kept: float
    kept_error: float
    closeness: float
    metrics: Mapping[str, float]

    def record(self) -> dict[str, Any]:
        """Plain values, as results.json and the log have them: schema 1's keys, then the newer ones."""
        return {
            "layer": self.candidate.name, "tower": self.candidate.tower, "iteration": self.iteration, "step": self.step,
            "relative_norm": self.relative_norm, **self.metrics, "feasible": self.feasible,
            "step_unit": self.step_unit, "forgotten": self.forgotten, "kept": self.kept,
            "layers": dict(self.candidate.layers),
        }  # fmt: skip


@dataclass(frozen=True)
class Search:
    """All that a layer search found for one name.

    Args:
        concept: The name (names that were forgotten together are joined by ", ").
        rule, granularity: The settings that decided; for the record.
        scores: Layer -> its scores; empty where none were computed.
        front: The layers on the Pareto front.
        before: The unedited model.
        trace: Every step that was tried, in order.
        chosen: An index into `trace`; None when no step was chosen.
        why: One sentence for people: why this step, or why none.
    """

    concept: str
    rule: str
    granularity: str
    scores: Mapping[str, LayerScore]
    front: tuple[str, ...]
    before: Evaluation
    trace: tuple[Evaluation, ...]
    chosen: int | None
    why: str

"""Layers that can be edited, their scores, and what a layer search tried and chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A slice of one weight tensor.

    Args:
        name: The name of the tensor.
        dim, start, length: The slice holds `length` rows (dim 0) or columns (dim 1) from `start`. A length of
            0 is the whole tensor.
    """

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
    """A layer that a search may edit.

    `scored` and `edited` differ only for Hugging Face models. There SLUG's release scores one of q/k/v (or
    fc1/fc2) and edits all of them.

    Args:
        tower: "vision" | "text".
        depth: In [0, 1], from the tower's input to its output.
        scored: The weights that importance and alignment are computed from.
        edited: The weights that a step changes.
    """

    name: str
    tower: str
    depth: float
    scored: tuple[Part, ...]
    edited: tuple[Part, ...]


@dataclass(frozen=True)
class LayerScore:
    """The scores of one layer, for its weights theta, forget gradient g_f and retain gradient g_r.

    Args:
        importance: |g_f| / |theta|, >= 0.
        alignment: |cos(g_f, g_r)|, in [0, 1]; None if g_r was not taken, as the search did not need it.
        cosine: cos(g_f, g_r), in [-1, 1]; None likewise.
        weight_norm, forget_norm, retain_norm: |theta|, |g_f| and |g_r|; |g_r| is None likewise.
        tower: "vision" | "text".
        gain: How much a whitened forget gradient raises the forget loss for a given change of the retained
            outputs (`muwa.layer_search.gains`); None if the gradient is not whitened.
    """

    importance: float
    alignment: float | None
    cosine: float | None
    weight_norm: float
    forget_norm: float
    retain_norm: float | None
    tower: str
    gain: float | None = None


# Units of a step.
LAMBDA = "lambda"  # the factor of the forget gradient: theta + lambda * g_f
RELATIVE = "|theta|/|g_f|"  # a step of 1 moves the layer by the norm of its weights

ALL_WEIGHTS = "all weights"  # stands for the layer, if an edit is not limited to one
BOTH_TOWERS = "both"  # stands for the tower, if an edit is not limited to one


@dataclass(frozen=True)
class Candidate:
    """What one step of a search edits: one layer of each encoder.

    Args:
        layers: Encoder name -> name of the edited layer. The encoders are those of `Editable.clips`: "" for a
            plain CLIP; "text_encoder", "text_encoder_2" or "vision_tower" for a CLIP inside a larger model.
            Empty for the unedited model.
        tower: "vision" | "text" | `BOTH_TOWERS`; "" for the unedited model.
        names: The same layers as reports and traces write them: the name of a second text encoder stands
            before its layer. Empty if `layers` has the names already.
    """

    layers: Mapping[str, str]
    tower: str
    names: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """All layers in one text, joined by " + ". For display only; no code parses it.

        >>> Candidate({"": "visual.proj"}, "vision").name, Candidate({}, "").name
        ('visual.proj', '')
        """
        return " + ".join(self.names or self.layers.values())


NOTHING_EDITED = Candidate({}, "")


@dataclass(frozen=True)
class Evaluation:
    """One step that a search tried, and its effect on the probe images (or on answers about them).

    All rates are in [0, 1].

    Args:
        candidate: What the step edited.
        iteration: 1, 2, ... within its candidate; 0 for the unedited model.
        step: The size of the step, in `step_unit`.
        step_unit: `LAMBDA`, `RELATIVE`, or a method's own unit ("learning rate").
        relative_norm: |delta| / |theta| over the edited weights.
        feasible: Whether the step forgets: `forgotten` is at most what the search allows.
        forgotten: The forget accuracy: the rate at which the target is still recognised. 0 means forgotten.
        kept: The kept rate: the mean of the retain and the utility accuracy. 1 means that nothing was lost.
        kept_error: The standard error of `kept`, from the binomial variances of its two rates.
        closeness: How close the forget samples still are to their name (a mean cosine). Among steps that keep
            equally much, the one with the lowest closeness is chosen.
        metrics: All rates by name. A zero-shot search gives forget_top1, forget_top5, forget_cosine,
            retain_top1 and utility_top1. Other searches may give others.
        kept_margin: How the edit changes the margins of the retain and utility images, as a mean over both
            sets: min(0, change) of each image; at most 0. None if it was not measured.
        forget_bounds: Name to forget -> how much nearer its images still are to the name than a stranger's
            (`muwa.layer_search.evaluators.margins.Margins.forget_bounds`); at 0 or below they are not. Empty
            if it was not measured.
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
    kept_margin: float | None = None
    forget_bounds: Mapping[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Plain values for results.json and the log. The keys that were added later stand last."""
        first = {
            "layer": self.candidate.name,
            "tower": self.candidate.tower,
            "iteration": self.iteration,
            "step": self.step,
            "relative_norm": self.relative_norm,
            **self.metrics,
            "feasible": self.feasible,
        }
        added: dict[str, Any] = {
            "step_unit": self.step_unit,
            "forgotten": self.forgotten,
            "kept": self.kept,
            "layers": dict(self.candidate.layers),
        }
        if self.kept_margin is not None:
            added |= {"kept_margin": self.kept_margin, "forget_bounds": dict(self.forget_bounds)}
        return first | added


@dataclass(frozen=True)
class Search:
    """The result of a layer search for one name.

    Args:
        concept: The name to forget. Several names that were searched together are joined by ", ".
        rule, granularity: The settings `rule` and `granularity` of the search.
        scores: Layer name -> its scores; empty if none were computed.
        front: The names of the layers on the Pareto front; empty if alignments were not computed.
        before: The evaluation of the unedited model.
        trace: Every step that was tried, in order.
        chosen: The index of the chosen step in `trace`; None if none was chosen.
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

    def __repr__(self) -> str:
        from muwa.types.short import short_repr  # here, for this module is the root of the others

        return short_repr(self)

"""Settings that several layer searches have, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from muwa.layer_search.checks import (
    check_above_0,
    check_at_least_1,
    check_between_0_and_1,
    check_family,
    check_layers,
    check_towers,
)
from muwa.layer_search.choice import Acceptance
from muwa.models.base import Editable, Observer
from muwa.models.clip.embeddings import Features
from muwa.types.ranges import (
    Count,
    Criterion,
    Factor,
    Granularity,
    NotNegative,
    Number,
    OutputRule,
    PartialShare,
    Positive,
    Rate,
    Start,
    StepRule,
    Towers,
)

STARTS = ("clip", "ratio", "gain")


@dataclass(frozen=True)
class ZeroShotSettings:
    """Settings of a search that evaluates each step by zero-shot accuracy on the probe images.

    Args:
        granularity: "tensor" | "qkv" | "mlp" | "head": what counts as one layer (`muwa.models.clip.layers`).
        rule: "constrained" | "margin" | "paper" | "deepest" (`muwa.layer_search.choice.choose`). None takes
            "margin" if the gradients are whitened, else "constrained".
        tolerance: For the rule "constrained": feasible steps whose kept rate is within this many standard
            errors of the best count as equal.
        stranger: For the rule "margin": how near the forget images may be to their name, compared with
            others' images (`muwa.layer_search.choice.Acceptance`).
        target: A step is feasible if its forget accuracy is at most this. Forget accuracy is the rate at
            which the name to forget is still recognised.
        criterion: Which forget accuracy decides: "top5" (the paper's) or "top1".
        towers: The towers that are searched, in this order: "vision", "text" or both.
    """

    observes: ClassVar[type[Observer] | None] = Features

    granularity: Granularity
    rule: StepRule | None
    tolerance: NotNegative
    stranger: Number
    target: PartialShare
    criterion: Criterion
    towers: Towers

    def acceptance(self, whitened: bool) -> Acceptance:
        """Which steps are feasible, and how one of the steps is chosen.

        Args:
            whitened: Whether the gradients are whitened; it decides if `rule` is None.
        """
        rule = self.rule or ("margin" if whitened else "constrained")
        return Acceptance(rule, self.criterion, self.target, self.tolerance, self.stranger)

    def check_settings(self, search: str, model: Editable, layers: Sequence[str] = ()) -> None:
        """Raise if one of these settings is out of range or does not fit the model.

        Args:
            search: For the message: "layer_search=grid".
            layers: Names of the layers that the settings give, if they do.

        Raises:
            ValueError: Names the key, what it was and what it may be.
        """
        check_family(search, self.observes, model)
        self.acceptance(whitened=False).check()
        check_towers(self.towers)
        for clip in model.clips.values():
            check_layers(clip, self.granularity, layers)


@dataclass(frozen=True)
class OutputSettings:
    """Settings of a search that evaluates each step by what the edited model generates or answers.

    Args:
        start: Where the search starts. "clip" is the fast way: first search the CLIP by zero-shot accuracy,
            which generates no output; then start at its best layers and their steps. "ratio" is the paper's
            way: try all layers on the front, from `first_step`. "gain", for whitened gradients: try the
            layers of largest gain (`muwa.layer_search.gains`), from `first_step`. None takes "gain" if the
            gradients are whitened, else "clip", or "ratio" if the task has no images (task=prompts).
        candidates: How many layers (pairs of layers with two text encoders) are searched at most; None for
            all.
        granularity: As in `ZeroShotSettings`.
        rule, tolerance: As in `ZeroShotSettings`; the rates are those of the outputs.
        first_step: For start "ratio": the first step, as a fraction of |theta| / |g_f|. Start "clip" uses it
            only if the CLIP has no feasible step.
        max_evals: Number of steps tried per candidate, at most.
        forget_at_most: A step is feasible if the upper end of Wilson's 95 % interval of the forget accuracy
            is at most this.
        lost_at_most: The search of a candidate ends at the first feasible step that lost at most this. What a
            step lost is the upper end of a 95 % interval (`muwa.layer_search.evaluators.outputs.Hits.lost`).
            The paper allows 10 points, without an interval.
        confirmations: A chosen step is confirmed: it is evaluated again, on more or other outputs. If it is
            no longer feasible, another one is chosen. This is the number of confirmations, at most.
        lengthen: If no step that was tried is feasible on confirmation, the first choice is confirmed with a
            step so many times as long, as often as `confirmations` allows. None: there is no edit then.
    """

    observes: ClassVar[type[Observer] | None]

    start: Start | None
    candidates: Count | None
    granularity: Granularity
    rule: OutputRule
    tolerance: NotNegative
    first_step: Positive
    max_evals: Count
    forget_at_most: Rate
    lost_at_most: Rate
    confirmations: Count
    lengthen: Factor | None

    @property
    def acceptance(self) -> Acceptance:
        """How one of the steps is chosen. By outputs, forget accuracy is top-1: the criterion is "top1"."""
        return Acceptance(self.rule, "top1", self.forget_at_most, self.tolerance, stranger=0.0)

    def needs_retain_gradient(self, *, whitened: bool) -> bool:
        """See `LayerSearch`. The start "gain" reads gains alone. Who tries all layers gets all scores."""
        return not (whitened and self.start in (None, "gain")) or self.candidates is None

    def check_settings(self, search: str, model: Editable) -> None:
        """Raise if one of these settings is out of range or does not fit the model.

        Args:
            search: For the message: "layer_search=generation".

        Raises:
            ValueError: Names the key, what it was and what it may be.
        """
        check_family(search, self.observes, model)
        if self.start is not None and self.start not in STARTS:
            raise ValueError(f"layer_search.start: got {self.start!r}, want one of {', '.join(STARTS)}")
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(
                f"layer_search.candidates: got {self.candidates}, want at least 1, or null for all layers"
            )
        check_at_least_1(confirmations=self.confirmations)
        check_between_0_and_1(forget_at_most=self.forget_at_most, lost_at_most=self.lost_at_most)
        if self.lengthen is not None and self.lengthen <= 1:
            raise ValueError(f"layer_search.lengthen: got {self.lengthen}, want a factor above 1, or null")
        self.acceptance.check()
        if self.rule == "margin":
            raise ValueError(
                "layer_search.rule: got 'margin', want constrained, paper or deepest: "
                "outputs have no margins, only a search of a CLIP measures them"
            )
        check_above_0(first_step=self.first_step, max_evals=self.max_evals)
        for clip in model.clips.values():
            check_layers(clip, self.granularity)

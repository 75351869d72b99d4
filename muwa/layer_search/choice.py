"""Which of the steps that a search tried becomes the edit: the rules, and the forget rates they go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muwa.types.search import Evaluation

RULES = ("constrained", "paper", "deepest")
CRITERIA = ("top1", "top5")
ROUNDING = 1e-9  # two values of `kept` that differ by less are equal


@dataclass(frozen=True)
class Acceptance:
    """When a step counts as forgetting, and how one of the steps is chosen.

    Args:
        rule: One of `RULES`; `choose` says what they do.
        criterion: One of `CRITERIA`: the forget rate that decides.
        target: A step is feasible if that rate is at most this; in [0, 1).
        tolerance: Rule "constrained" treats steps as equally good if they keep at most this many standard
            errors less than the best step. Smaller differences are due to the choice of probe images. A step
            that only just forgets on them may not forget on other images. 0 takes the best step as it is.
    """

    rule: str
    criterion: str
    target: float
    tolerance: float

    def check(self) -> None:
        """Raise if a setting is out of range.

        Raises:
            ValueError: Names the key of the layer search, what it was and what it may be.
        """
        for key, value, choices in (("rule", self.rule, RULES), ("criterion", self.criterion, CRITERIA)):
            if value not in choices:
                raise ValueError(f"layer_search.{key}: got {value!r}, want one of {', '.join(choices)}")
        if not 0 <= self.target < 1:
            raise ValueError(f"layer_search.target: got {self.target}, want a forget accuracy in [0, 1)")
        if self.tolerance < 0:
            raise ValueError(f"layer_search.tolerance: got {self.tolerance}, want 0 or more standard errors")


def kept_rate(retain: float, utility: float) -> float:
    """`Evaluation.kept`: the mean of the retain and the utility rate, in [0, 1]."""
    return (retain + utility) / 2


def kept_error(retain: float, utility: float, counts: tuple[int, int]) -> float:
    """`Evaluation.kept_error`: the standard error of `kept_rate`, from the binomial variances of both rates.

    Args:
        counts: How many retain and how many utility samples the rates are of.

    >>> round(kept_error(0.9, 0.9, (100, 100)), 4)
    0.0212
    """
    rates = (retain, utility)
    return 0.5 * sum(rate * (1 - rate) / max(n, 1) for rate, n in zip(rates, counts, strict=True)) ** 0.5


def choose(trace: Sequence[Evaluation], acceptance: Acceptance) -> tuple[int | None, str]:
    """Choose one evaluation of a trace by `acceptance.rule`, and say why.

    The rules:
        "constrained": Among the feasible steps, find the one that keeps most. Of all feasible steps that keep
            at most `tolerance` standard errors less, take the one with the lowest `closeness`. None if no
            step is feasible.
        "paper": The lowest forget rate, then the highest `kept`, feasible or not.
        "deepest": The last step that was tried, feasible or not. The search then tries the deepest front
            layer only.

    Returns:
        (index into `trace`, or None if nothing was chosen; the reason, in one sentence).

    Source: SLUG (arXiv 2407.11867), algorithm 1 for "paper"; its release's code for Stable Diffusion and
    vision-language models for "deepest". The one-standard-error rule is that of Breiman et al. 1984, section
    3.4.3 (there for pruning trees).
    """
    if not trace:
        return None, "Nothing was tried: no layer is on the front."
    feasible = sum(row.feasible for row in trace)
    layers = len({row.candidate.name for row in trace})
    note = f"{feasible} of {len(trace)} steps on {layers} layers were feasible"
    if acceptance.rule == "constrained":
        return _constrained(trace, acceptance, note)
    if acceptance.rule == "paper":
        best = min(range(len(trace)), key=lambda i: (trace[i].forgotten, -trace[i].kept))
        reason = f"The lowest forget {acceptance.criterion} ({trace[best].forgotten:.1%}), then most kept"
    else:
        best = len(trace) - 1
        reason = f"The last step of the deepest front layer, {trace[best].candidate.name}"
    verdict = "feasible" if trace[best].feasible else "NOT feasible"
    return best, f"{reason}: {verdict}; {note}."


def _constrained(trace: Sequence[Evaluation], acceptance: Acceptance, note: str) -> tuple[int | None, str]:
    """`choose` by the rule "constrained"."""
    feasible = [i for i, row in enumerate(trace) if row.feasible]
    if not feasible:
        least = min(row.forgotten for row in trace)
        return (
            None,
            f"No feasible step: the lowest forget {acceptance.criterion} reached was {least:.1%}; {note}.",
        )
    most = trace[max(feasible, key=lambda i: trace[i].kept)]
    least = most.kept - acceptance.tolerance * most.kept_error - ROUNDING
    best = min((i for i in feasible if trace[i].kept >= least), key=lambda i: trace[i].closeness)
    return best, (
        f"Of the feasible steps that keep most ({most.kept:.1%} of retain and utility, or at most "
        f"{acceptance.tolerance:g} standard errors less) the one that forgets deepest; it keeps "
        f"{trace[best].kept:.1%}; {note}."
    )

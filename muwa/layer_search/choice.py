"""Which of the steps that a search tried becomes the edit: the rules, and the rates that they compare.

Every evaluation of a step (`muwa.types.search.Evaluation`) has two rates in [0, 1]:

- `forgotten` is the forget accuracy, the rate at which the name to forget is still recognised.
  0 means forgotten.
- `kept` is the kept rate, the mean of the retain and the utility accuracy. 1 means that
  nothing was lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muwa.types.search import Evaluation

RULES = ("constrained", "margin", "paper", "deepest")
CRITERIA = ("top1", "top5")
ACCURACIES = {"top1": "forget top-1 accuracy", "top5": "forget top-5 accuracy"}  # as messages name them
ROUNDING = 1e-9  # two values of `kept` that differ by less are equal


@dataclass(frozen=True)
class Acceptance:
    """Which steps are feasible, that is, count as forgetting; and how one of the steps is chosen.

    Args:
        rule: One of `RULES`; `choose` says what they do.
        criterion: One of `CRITERIA`: the forget accuracy that decides.
        target: A step is feasible if that accuracy is at most this; in [0, 1).
        tolerance: For rule "constrained". Feasible steps whose kept rate is within this many standard errors
            of the best count as equal: such a difference may be due to the choice of probe images. The one
            that forgets most thoroughly is taken, as a step that only just forgets on the probe images may
            not forget on others. With 0, the step that keeps most is taken.
        stranger: For rule "margin" with a target of 0. A step is feasible only if the mean cosine of each
            name's images with the name is at most that of others' images with it, plus this many of their
            standard deviations. A step that only just forgets on the probe images may not forget on others.
    """

    rule: str
    criterion: str
    target: float
    tolerance: float
    stranger: float

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
        if not abs(self.stranger) < float("inf"):
            raise ValueError(f"layer_search.stranger: got {self.stranger}, want a number of deviations")


def kept_rate(retain: float, utility: float) -> float:
    """`Evaluation.kept`: the mean of the retain and the utility accuracy, in [0, 1]."""
    return (retain + utility) / 2


def kept_error(retain: float, utility: float, counts: tuple[int, int]) -> float:
    """`Evaluation.kept_error`: the standard error of `kept_rate`, from the binomial variances of both rates.

    Args:
        retain, utility: The two rates, in [0, 1].
        counts: The number of retain samples and of utility samples.

    >>> round(kept_error(0.9, 0.9, (100, 100)), 4)
    0.0212
    """
    rates = (retain, utility)
    return 0.5 * sum(rate * (1 - rate) / max(n, 1) for rate, n in zip(rates, counts, strict=True)) ** 0.5


def choose(trace: Sequence[Evaluation], acceptance: Acceptance) -> tuple[int | None, str]:
    """Choose one evaluation of a trace by `acceptance.rule`, and say why.

    The rules:

    - "constrained": the feasible step that forgets most thoroughly (lowest closeness), among those whose kept
      rate is within `tolerance` standard errors of the best. None if no step is feasible.
    - "margin": the feasible step that lowers the margins of the retained images least (the largest
      `kept_margin`). None if no step is feasible.
    - "paper": the step with the lowest forget accuracy, feasible or not. Ties are broken by the kept rate.
    - "deepest": the last step that was tried, feasible or not. A search with this rule tries only the
      deepest layer, the one nearest the output.

    Returns:
        (index into `trace`, or None if nothing was chosen; the reason, in one sentence).

    Source: SLUG (arXiv 2407.11867), algorithm 1, for "paper". SLUG's released code for Stable Diffusion and
    vision-language models is the source of "deepest". The rule of one standard error is that of Breiman et
    al. 1984, section 3.4.3 (there for pruning trees).
    """
    if not trace:
        return None, "Nothing was tried: no layer is on the front, or has a gain."
    layers = len({row.candidate.name for row in trace})
    note = feasible_note(trace, f"steps on {layers} layer{'' if layers == 1 else 's'}")
    if acceptance.rule in ("constrained", "margin") and not any(row.feasible for row in trace):
        return None, _infeasible(trace, acceptance, note)
    if acceptance.rule == "constrained":
        return _constrained(trace, acceptance, note)
    if acceptance.rule == "margin":
        return _least_change(trace, note)
    if acceptance.rule == "paper":
        best = min(range(len(trace)), key=lambda i: (trace[i].forgotten, -trace[i].kept))
        accuracy = f"{ACCURACIES[acceptance.criterion]} ({trace[best].forgotten:.1%})"
        reason = f"Lowest {accuracy}, ties broken by the kept rate"
    else:
        best = len(trace) - 1
        reason = f"The last step on the deepest front layer, {trace[best].candidate.name}"
    verdict = "feasible" if trace[best].feasible else "not feasible"
    return best, f"{reason}; this step is {verdict}; {note}."


def feasible_note(trace: Sequence[Evaluation], things: str) -> str:
    """How many evaluations are feasible, for a sentence: "1 of 10 steps on 1 layer was feasible".

    Args:
        things: What was evaluated, in the plural: "steps on 1 layer".
    """
    count = sum(row.feasible for row in trace)
    return f"{count} of {len(trace)} {things} {'was' if count == 1 else 'were'} feasible"


def kept_in_words(row: Evaluation) -> str:
    """The kept rate, and the two rates that it is the mean of, where they are known."""
    if not {"retain_top1", "utility_top1"} <= row.metrics.keys():
        return f"{row.kept:.1%}"
    retain, utility = row.metrics["retain_top1"], row.metrics["utility_top1"]
    return f"{row.kept:.1%} on average ({retain:.1%} of others of the kind, {utility:.1%} of everything else)"


def near_best(tolerance: float, best: float) -> str:
    """Which kept rates count as equal, for a sentence: "within 1 standard error of the best (90.0%)".

    Args:
        best: The highest kept rate of a feasible step.
    """
    if tolerance == 0:
        return f"the best ({best:.1%})"
    return f"within {tolerance:g} standard error{'' if tolerance == 1 else 's'} of the best ({best:.1%})"


def _infeasible(trace: Sequence[Evaluation], acceptance: Acceptance, note: str) -> str:
    """Why no step was chosen, if none was feasible."""
    least = min(row.forgotten for row in trace)
    want = f"want a {ACCURACIES[acceptance.criterion]} of at most {acceptance.target:.1%}"
    if acceptance.rule == "margin" and least <= acceptance.target:
        want += ", and images no nearer to their name than a stranger's"
    return f"No feasible step: {want}; the lowest was {least:.1%}; {note}."


def _least_change(trace: Sequence[Evaluation], note: str) -> tuple[int, str]:
    """`choose` by the rule "margin", if a step is feasible."""

    def kept_margin(i: int) -> float:
        margin = trace[i].kept_margin
        return -float("inf") if margin is None else margin

    best = max((i for i, row in enumerate(trace) if row.feasible), key=kept_margin)
    return best, (
        f"Of the feasible steps, this one lowers the margins of what is retained least "
        f"(by {-kept_margin(best):.4f} on average); it keeps {kept_in_words(trace[best])}; {note}."
    )


def _constrained(trace: Sequence[Evaluation], acceptance: Acceptance, note: str) -> tuple[int, str]:
    """`choose` by the rule "constrained", if a step is feasible."""
    feasible = [i for i, row in enumerate(trace) if row.feasible]
    most = trace[max(feasible, key=lambda i: trace[i].kept)]
    least = most.kept - acceptance.tolerance * most.kept_error - ROUNDING
    best = min((i for i in feasible if trace[i].kept >= least), key=lambda i: trace[i].closeness)
    equal = f"the feasible steps whose kept rate is {near_best(acceptance.tolerance, most.kept)}"
    return best, (
        f"Among {equal}, this one forgets most thoroughly (its samples are least close to their name); "
        f"it keeps {kept_in_words(trace[best])}; {note}."
    )

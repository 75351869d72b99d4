"""Which outputs of a model (generated images or answers) are right, and the evaluation of a step by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muwa.eval.statistics import wilson
from muwa.layer_search.choice import kept_error, kept_rate
from muwa.types.search import RELATIVE, Candidate, Evaluation


@dataclass(frozen=True)
class Hits:
    """Whether each output of one model is right, that is, shows or names what was asked for.

    Args:
        right: One value per output.
        roles: Which set each output is about: "forget", "retain", "utility", or "earlier" (names that the
            model has forgotten already). As many as `right`.
        names: The name that each output is about, as many as `right`. Empty: all are about one name.
    """

    right: Sequence[bool]
    roles: Sequence[str]
    names: Sequence[str] = ()

    def of(self, role: str) -> list[bool]:
        """The values of `right` in one set."""
        return [right for right, its_role in zip(self.right, self.roles, strict=True) if its_role == role]

    def of_each_name(self) -> list[list[bool]]:
        """The values of `right` in the forget set, one list per name, in the order in which names appear."""
        found: dict[str, list[bool]] = {}
        names = self.names or [""] * len(self.right)
        for right, role, name in zip(self.right, self.roles, names, strict=True):
            if role == "forget":
                found.setdefault(name, []).append(right)
        return list(found.values())

    def still_forgotten(self, before: Hits, forget_at_most: float) -> bool:
        """Whether each earlier name is recognised no more often than before, or rarely enough.

        Args:
            before: The outputs of the unedited model for the same requests or questions.
            forget_at_most: The most that the upper end of the 95 % interval of its rate may be.
        """
        counts: dict[str, list[tuple[bool, bool]]] = {}
        names = self.names or [""] * len(self.right)
        for right, was, role, name in zip(self.right, before.right, self.roles, names, strict=True):
            if role == "earlier":
                counts.setdefault(name, []).append((right, was))
        return all(
            sum(right for right, _ in mine) <= sum(was for _, was in mine)
            or wilson(sum(right for right, _ in mine), len(mine))[1] <= forget_at_most
            for mine in counts.values()
        )

    def rate(self, role: str) -> float:
        """The fraction of right outputs in one set, in [0, 1]; 0 for an empty set.

        For "forget" it is the forget accuracy: 0 is forgotten.
        """
        return sum(self.of(role)) / max(1, len(self.of(role)))

    def lost(self, before: Hits) -> float:
        """How much of the retain and utility sets was lost.

        Args:
            before: The outputs of the unedited model for the same requests or questions.

        Returns:
            The upper end of Wilson's 95 % interval of the loss rate: the fraction of outputs that are wrong
            after the edit, among the outputs of both sets that were right before it.
        """
        rows = zip(self.right, before.right, self.roles, strict=True)
        kept = ("retain", "utility")
        lost = [not right for right, was_right, role in rows if was_right and role in kept]
        return wilson(sum(lost), len(lost))[1]


def evaluation(
    hits: Hits,
    candidate: Candidate,
    step: float,
    size: float,
    *,
    forget_at_most: float,
    forget_top5: float,
    closeness: float,
    before: Hits | None = None,
) -> Evaluation:
    """The evaluation of one step; its iteration is 0 until the search numbers it.

    Without outputs of the utility set, as with task=prompts, the kept rate is the retain accuracy alone.

    Args:
        hits: The outputs of the edited model.
        candidate, step, size: What was edited, how far (unit `RELATIVE`), and |delta| / |theta|.
        forget_at_most: The step is feasible if, for each name, the upper end of the forget accuracy's 95 %
            interval is at most this.
        forget_top5: The forget top-5 accuracy where the classifier ranks its guesses, else the forget
            accuracy.
        closeness: How close the forget outputs still are to their name (a mean cosine).
        before: The outputs of the unedited model, if there are earlier names: they must stay forgotten.
    """
    retain, utility = hits.rate("retain"), hits.rate("utility")
    metrics: dict[str, float] = {
        "forget_top1": hits.rate("forget"),
        "forget_top5": forget_top5,
        "forget_cosine": closeness,
        "retain_top1": retain,
    }
    if hits.of("earlier"):
        metrics["earlier_top1"] = hits.rate("earlier")
    stays = before is None or hits.still_forgotten(before, forget_at_most)
    n, n_utility = len(hits.of("retain")), len(hits.of("utility"))
    kept, error = retain, (retain * (1 - retain) / max(n, 1)) ** 0.5
    if n_utility:
        metrics["utility_top1"] = utility
        kept, error = kept_rate(retain, utility), kept_error(retain, utility, (n, n_utility))
    return Evaluation(
        candidate=candidate,
        iteration=0,
        step=step,
        step_unit=RELATIVE,
        relative_norm=size,
        feasible=stays
        and all(wilson(sum(one), len(one))[1] <= forget_at_most for one in hits.of_each_name()),
        forgotten=hits.rate("forget"),
        kept=kept,
        kept_error=error,
        closeness=closeness,
        metrics=metrics,
    )

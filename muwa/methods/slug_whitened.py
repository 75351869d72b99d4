"""SLUG along a whitened forget gradient, with all names in one edit of one layer: muwa's own method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.whitening import WhitenedGradients, Whitening
from muwa.layer_search.replay import run_search
from muwa.layer_search.steps import edit_of
from muwa.methods.base import Method
from muwa.methods.slug import Slug, SlugSettings, log_gradients
from muwa.types.edit import Edit
from muwa.types.ranges import Count, Positive, Share

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.gradients import Gradients
    from muwa.types.search import Search


@dataclass(frozen=True)
class SlugWhitened(SlugSettings, Method):
    """SLUG with (S + d_S I)^-p G (C + d_C I)^-q in place of the forget gradient G of every weight matrix.

    C and S are the second moments of a weight's inputs, and of the gradients at its outputs, on the retain
    set (`muwa.gradients.whitening.Whitening`). The whitened direction changes the retained outputs least for
    the same first-order rise of the forget loss. Layers are scored by that ratio (`muwa.layer_search.gains`).

    Several names are one request: one search finds one layer and one step, judged on all names. The direction
    is the one that costs least of all that raise the forget loss of every name
    (`muwa.gradients.whitening.shares`).

    Args:
        damping, output_damping: d_C and d_S, above 0.
        input_power, output_power: q and p, from 0 to 1. With p = 0, S is not computed.
        rounds: With several names, how often the shares of the names in their joint direction are found anew
            (`_joint_edit`); at least 1. A round is one search, and no pass over data.
        jointly: Whether several names are one edit of one layer. If not, each name has its own layer and
            step, and the edits are added, as in `Slug`.

    The other arguments are those of `muwa.methods.slug.SlugSettings`.

    Source: muwa's own. The metric is that of K-FAC (arXiv 1503.05671).
    """

    uses_workers: ClassVar[bool] = True

    damping: Positive
    output_damping: Positive
    input_power: Share
    output_power: Share
    jointly: bool
    rounds: Count

    @property
    def whitens(self) -> bool:
        """Yes: see the class."""
        return True

    @property
    def slug(self) -> Slug:
        """SLUG on the whitened gradients."""
        return self.slug_along(self.whitened)

    @property
    def whitened(self) -> WhitenedGradients:
        """The source of the whitened gradients."""
        return WhitenedGradients(
            self.gradients, Whitening(self.damping, self.output_damping, self.input_power, self.output_power)
        )

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range, or if the gradient source or the search does not fit the model.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        if self.rounds < 1:
            raise ValueError(f"method.rounds: got {self.rounds}, want at least 1")
        self.slug.check(model, task, run)

    def __call__(self, model: Editable, task: Task, run: Run) -> Edit:
        """The edit; it has no delta for a name whose search chose no step."""
        joint = self.jointly and len(task.names) > 1
        edit = self._joint_edit(model, task, run) if joint else self.slug(model, task, run)
        # Input moments take no gradients; output moments take a second pass with gradients.
        more = len(model.clips) * len(task.retain_pairs()) if self.output_power else 0
        return replace(edit, samples=edit.samples + more)

    def _joint_edit(self, model: Editable, task: Task, run: Run) -> Edit:
        """One step on one layer, along the joint direction of all names.

        The first direction raises the forget loss of all names by the same first-order amount. Some are then
        forgotten sooner than others. Each further round asks for less of a name that the last step carried
        further than was needed (`needed_rises`), which shortens the step. The round that lowers the margins
        of what is retained least is taken. A search that measures no margins has one round.
        """
        layer_search = self.layer_search.ready(model, task)
        each = [self.gradients(model, task, name, self.recipe, run) for name in task.names]
        moments = self.gradients.moments(model, task, self.recipe, run, outputs=self.output_power > 0)
        names = [one for one in each if one is not None]
        if not names or moments is None:
            return Edit({}, ())
        rises = [1.0] * len(names)
        best: tuple[Search, Mapping[str, Gradients]] | None = None
        for _ in range(self.rounds):
            whitened = {
                key: self.whitened.whitened([one[key] for one in names], rises, moments[key])
                for key in names[0]
            }
            log_gradients(", ".join(task.names), whitened, run)
            search = run_search(layer_search, model, whitened, task, ", ".join(task.names), run)
            if best is None or kept_margin(search) > kept_margin(best[0]):
                best = search, whitened
            needed = needed_rises(rises, search, task.names)
            if needed is None:
                break
            rises = needed
        assert best is not None
        edit = edit_of(best[0], model, best[1])
        moves = tuple(replace(move, concept=name) for move in edit.moves for name in task.names)
        samples = sum(one.n_forget + one.n_retain for one in best[1].values())
        return replace(edit, moves=moves, samples=samples)


def kept_margin(search: Search) -> float:
    """`Evaluation.kept_margin` of the chosen step; minus infinity if no step was chosen."""
    margin = None if search.chosen is None else search.trace[search.chosen].kept_margin
    return -float("inf") if margin is None else margin


def needed_rises(rises: Sequence[float], search: Search, names: Sequence[str]) -> list[float] | None:
    """How much of each name's rise the chosen step needed, scaled to a mean of 1.

    A name whose margin fell from b > 0 to a < 0 needed the fraction b / (b - a) of its rise, as far as
    margins fall linearly. A name is reduced to 0.3 of its rise at most.

    Args:
        rises: The rises of the search.
        names: The names to forget, in the order of `rises`.

    Returns:
        One number above 0 per name; None if no step was chosen or a name has no bound.
    """
    if search.chosen is None:
        return None
    before, after = search.before.forget_bounds, search.trace[search.chosen].forget_bounds
    if any(name not in before or name not in after for name in names):
        return None
    needed = [
        rise * min(1.0, max(0.3, before[name] / max(before[name] - after[name], 1e-9)))
        for rise, name in zip(rises, names, strict=True)
    ]
    mean = sum(needed) / len(needed)
    return [one / mean for one in needed]

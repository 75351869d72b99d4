"""SLUG along a whitened forget gradient, with all names in one edit of one layer: muwa's own method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.whitening import WhitenedGradients, Whitening
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.replay import run_search
from muwa.layer_search.steps import edit_of
from muwa.methods.base import Method
from muwa.methods.slug import Slug, log_gradients
from muwa.types.edit import Edit

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.gradients import Gradients


@dataclass(frozen=True)
class SlugWhitened(Method):
    """SLUG with (S + d_S I)^-p G (C + d_C I)^-q in place of the forget gradient G of every weight matrix.

    C and S are the second moments of a weight's inputs, and of the gradients at its outputs, on the retain
    set (`muwa.gradients.whitening.Whitening`). The whitened direction changes the retained outputs least for
    the same first-order rise of the forget loss. Layers are scored by that ratio (`muwa.layer_search.gains`).

    Several names are one request: the sum of their forget gradients is whitened, and one search finds one
    layer and one step, judged on all names.

    Args:
        layer_search: As in `muwa.methods.slug.Slug`.
        damping, output_damping: d_C and d_S, above 0.
        input_power, output_power: q and p, from 0 to 1. With p = 0, S is not computed.
        jointly: Whether several names are one edit of one layer. If not, each name has its own layer and
            step, and the edits are added, as in `Slug`.
        gradients, forget_loss, retain_loss, batch_size, seed, precision, micro_batch_size: As in `Slug`.

    Source: muwa's own. The metric is that of K-FAC (arXiv 1503.05671).
    """

    uses_workers: ClassVar[bool] = True

    layer_search: LayerSearch
    damping: float
    output_damping: float
    input_power: float
    output_power: float
    jointly: bool
    gradients: GradientSource
    forget_loss: str
    retain_loss: str
    batch_size: int
    seed: int
    precision: str
    micro_batch_size: int | None

    @property
    def slug(self) -> Slug:
        """SLUG on the whitened gradients."""
        return Slug(
            self.layer_search,
            self.whitened,
            self.forget_loss,
            self.retain_loss,
            self.batch_size,
            self.seed,
            self.precision,
            self.micro_batch_size,
        )

    @property
    def whitened(self) -> WhitenedGradients:
        """The source of the whitened gradients."""
        return WhitenedGradients(
            self.gradients, Whitening(self.damping, self.output_damping, self.input_power, self.output_power)
        )

    @property
    def recipe(self) -> Recipe:
        """How the gradients are taken, before they are whitened."""
        return self.slug.recipe

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range, or if the gradient source or the search does not fit the model.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        self.slug.check(model, task, run)

    def __call__(self, model: Editable, task: Task, run: Run) -> Edit:
        """The edit; it has no delta for a name whose search chose no step."""
        joint = self.jointly and len(task.names) > 1
        edit = self._joint_edit(model, task, run) if joint else self.slug(model, task, run)
        # Input moments take no gradients; output moments take a second pass with gradients.
        more = len(model.clips) * len(task.retain_pairs()) if self.output_power else 0
        return replace(edit, samples=edit.samples + more)

    def _joint_edit(self, model: Editable, task: Task, run: Run) -> Edit:
        """One step on one layer, along the whitened sum of all names' forget gradients."""
        layer_search = self.layer_search.ready(model, task)
        total: Mapping[str, Gradients] | None = None
        for name in task.names:
            each = self.gradients(model, task, name, self.recipe, run)
            if each is not None:
                total = each if total is None else add_names(total, each)
        moments = self.gradients.moments(model, task, self.recipe, run, outputs=self.output_power > 0)
        if total is None or moments is None:
            return Edit({}, ())
        names = ", ".join(task.names)
        whitened = {key: self.whitened.whitened(one, moments[key]) for key, one in total.items()}
        log_gradients(names, whitened, run)
        search = run_search(layer_search, model, whitened, task, names, run)
        edit = edit_of(search, model, whitened)
        moves = tuple(replace(move, concept=name) for move in edit.moves for name in task.names)
        samples = sum(one.n_forget + one.n_retain for one in total.values())
        return replace(edit, moves=moves, samples=samples)


def add_names(some: Mapping[str, Gradients], others: Mapping[str, Gradients]) -> dict[str, Gradients]:
    """The gradients of several names together: the sum of their mean forget gradients, for each encoder.

    Each name counts the same, however many pairs it has. The retain gradients are the same for all.
    """
    return {encoder: _added(one, others[encoder]) for encoder, one in some.items()}


def _added(one: Gradients, other: Gradients) -> Gradients:
    forget = {name: g + other.forget[name] for name, g in one.forget.items()}
    pairs = f"{one.origin['forget_pairs']}+{other.origin['forget_pairs']}"
    origin = {**one.origin, "forget_pairs": pairs}
    return replace(one, forget=forget, n_forget=one.n_forget + other.n_forget, origin=origin)

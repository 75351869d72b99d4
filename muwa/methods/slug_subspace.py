"""SLUG on a forget gradient without the input directions that the retain set uses most: muwa's own method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from muwa.gradients.subspaces import ProjectedGradients
from muwa.methods.base import Method
from muwa.methods.slug import Slug, SlugSettings
from muwa.types.edit import Edit
from muwa.types.ranges import Count, Rate

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Run
    from muwa.types.data import Task


@dataclass(frozen=True)
class SlugSubspace(SlugSettings, Method):
    """SLUG with `G_f (I - V V^T)` in place of the forget gradient G_f of every weight matrix.

    G_f is (outputs, inputs). The k columns of V (inputs, k) span the input directions that the retain set
    uses most (`muwa.gradients.subspaces`). Scores, Pareto front and search are those of SLUG, with the
    projected gradient.

    Args:
        subspace: What V is computed from. "gradient": the mean retain gradient. "fisher": the retain
            gradients of single batches. "activations": the inputs of the weight on the retain set.
        energy: Sets k: the smallest number of directions that hold at least this fraction of the trace of the
            second moment; in (0, 1).
        rank: The number k itself, the same for all weights; None takes k from `energy`.

    The other arguments are those of `muwa.methods.slug.SlugSettings`.

    Source: muwa's own. The subspaces are those of gradient projection memory (arXiv 2103.09762), there for
    continual learning.
    """

    uses_workers: ClassVar[bool] = True

    subspace: Literal["activations", "fisher", "gradient"]
    energy: Rate
    rank: Count | None

    @property
    def slug(self) -> Slug:
        """SLUG on the projected gradients."""
        return self.slug_along(ProjectedGradients(self.gradients, self.subspace, self.energy, self.rank))

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range, or if the gradient source or the search does not fit the model.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        self.slug.check(model, task, run)

    def __call__(self, model: Editable, task: Task, run: Run) -> Edit:
        """The edit; it has no delta for a name whose search chose no step."""
        edit = self.slug(model, task, run)
        # Only "fisher" takes a second pass with gradients over the retain set.
        more = len(task.retain_pairs()) if self.subspace == "fisher" else 0
        return replace(edit, samples=edit.samples + more)

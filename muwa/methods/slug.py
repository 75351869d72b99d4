"""SLUG: forget by one step along the forget gradient of one layer (arXiv 2407.11867, ICML 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import norms
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.replay import searched
from muwa.layer_search.steps import add_edits, edit_of
from muwa.methods.base import Method
from muwa.types.edit import Edit

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.gradients import Gradients


@dataclass(frozen=True)
class Slug(Method):
    """One step along the mean forget gradient, on the one layer that a search over the Pareto front chooses.

    For every name to forget (algorithm 1 of the paper):

    1. Gradients: the means g_f of the forget loss and g_r of the retain loss, at the original weights theta.
    2. Scores of each layer: importance |g_f| / |theta|, alignment |cos(g_f, g_r)|.
    3. Pareto front: the layers of high importance and low alignment (algorithm 2).
    4. Step: a bisection of lambda on each layer of the front; then the choice of one layer (algorithm 3).
    5. Edit: theta* = theta + lambda g_f on that layer. g_f is the gradient of the loss itself: lambda > 0
       raises the forget loss.

    Steps 2 to 4 are the layer search. A model with several text encoders is edited in one layer of each.
    Each of several names has its own gradients on the original model, its own layer and its own step. Their
    edits are added.

    Args:
        layer_search: How the layer and the step are found, for this kind of model.
        gradients: What the gradients are taken of: the CLIP (the paper), or a model's answers.
        forget_loss, retain_loss: "cosine" | "contrastive".
        batch_size: Pairs a batch. It sets the negatives of the contrastive loss.
        seed: Of the order of the pairs.
        precision: Of the forward pass of the gradients: "fp32" | "bf16"; sums stay fp32.
        micro_batch_size: Pairs that are encoded at once, where a batch does not fit in memory; None takes
            whole batches. It changes the gradients by rounding only.

    Source: SLUG (arXiv 2407.11867), algorithms 1 to 3; docs/method.md lists where we differ.
    """

    uses_workers: ClassVar[bool] = True

    layer_search: LayerSearch
    gradients: GradientSource
    forget_loss: str
    retain_loss: str
    batch_size: int
    seed: int
    precision: str
    micro_batch_size: int | None

    @property
    def recipe(self) -> Recipe:
        """How the gradients are taken.

        Raises:
            ValueError: A setting is out of range.
        """
        return Recipe(
            self.forget_loss,
            self.retain_loss,
            self.batch_size,
            self.seed,
            self.precision,
            self.micro_batch_size,
        )

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range, or the gradient source or the search does not fit the model.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        self.gradients.check(model, self.recipe, run)
        self.layer_search.check(model, task)

    def __call__(self, model: Editable, task: Task, run: Run) -> Edit:
        """The edit. It has no delta for a name whose search found no feasible step.

        Raises:
            ValueError: `run.gradient_file` was computed from something else.
        """
        layer_search = self.layer_search.ready(model, task)
        edits: list[Edit] = []
        taken: list[Gradients] = []
        for name in task.names:
            gradients = self.gradients(model, task, name, self.recipe, run)
            if gradients is None:
                continue
            log_gradients(name, gradients, run)
            search = searched(layer_search, model, gradients, task.only(name), name, run)
            edits.append(edit_of(search, model, gradients))
            taken.append(next(iter(gradients.values())))
        samples = sum(one.n_forget for one in taken) + max((one.n_retain for one in taken), default=0)
        return replace(add_edits(edits), samples=len(model.clips) * samples)


def log_gradients(name: str, gradients: Mapping[str, Gradients], run: Run) -> None:
    """Log the norms of the gradients of each encoder, and the number of pairs that they are means over."""
    for one in gradients.values():
        run.log("gradients", {"concept": name, "norms": norms(one), "n": [one.n_forget, one.n_retain]})

"""SLUG: forget by one step along the forget gradient of one layer (arXiv 2407.11867, ICML 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import norms
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.replay import run_search
from muwa.layer_search.steps import add_edits, edit_of
from muwa.methods.base import Method
from muwa.types.data import PROMPTS
from muwa.types.edit import Edit
from muwa.types.ranges import Count, Loss, Precision, Seed

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.gradients import Gradients


@dataclass(frozen=True)
class SlugSettings:
    """The settings of SLUG and of its variants on other gradients.

    Args:
        layer_search: How the layer and the step are found, for this kind of model.
        gradients: Which loss is differentiated: the CLIP loss (as in the paper) or the loss on a model's
            answers.
        forget_loss, retain_loss: The losses that g_f and g_r are gradients of: "cosine" | "contrastive".
        batch_size: Number of pairs per batch. The other pairs of a batch are the negatives of the contrastive
            loss.
        seed: Seed for the order of the pairs.
        precision: Precision of the forward pass of the gradients: "fp32" | "bf16"; sums stay fp32.
        micro_batch_size: Pairs that are encoded at once, if a batch does not fit in memory; None takes whole
            batches. It changes the gradients by rounding only.
    """

    layer_search: LayerSearch
    gradients: GradientSource
    forget_loss: Loss
    retain_loss: Loss
    batch_size: Count
    seed: Seed
    precision: Precision
    micro_batch_size: Count | None

    @property
    def whitens(self) -> bool:
        """Whether the forget gradients of the layer search are whitened."""
        return self.gradients.whitens

    @property
    def recipe(self) -> Recipe:
        """How the gradients are taken; no retain gradient if the layer search reads no Pareto front.

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
            retain_gradient=self.layer_search.needs_retain_gradient(whitened=self.whitens),
        )

    def slug_along(self, gradients: GradientSource) -> Slug:
        """SLUG with these settings, on the gradients of another source."""
        values = {field.name: getattr(self, field.name) for field in fields(SlugSettings)}
        return Slug(**{**values, "gradients": gradients})


@dataclass(frozen=True)
class Slug(SlugSettings, Method):
    """One step along the mean forget gradient, on the one layer that a search over the Pareto front chooses.

    For every name to forget (algorithm 1 of the paper):

    1. Gradients: the mean gradients g_f of the forget loss and g_r of the retain loss, at the original
       weights theta.
    2. Scores of each layer: importance |g_f| / |theta| and alignment |cos(g_f, g_r)|.
    3. Pareto front: the layers that no other layer beats on both scores (algorithm 2).
    4. Step: bisect lambda on each layer of the front, then choose one layer and step (algorithm 3).
    5. Edit: theta* = theta + lambda g_f on that layer (`muwa.layer_search.steps.step_deltas`). No sign is
       flipped: lambda > 0 raises the forget loss.

    Steps 2 to 4 are the layer search. In a model with several text encoders, one layer of each is edited.
    With several names, each name has its own gradients (all at the original weights), its own layer and its
    own step. The edits of all names are added.

    The arguments are those of `SlugSettings`.

    Source: SLUG (arXiv 2407.11867), algorithms 1 to 3; docs/method.md lists where we differ.
    """

    uses_workers: ClassVar[bool] = True

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range, or if the gradient source or the search does not fit the model.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """
        self.gradients.check(model, self.recipe, run)
        if task.kind == PROMPTS and self.gradients.reads_pairs:
            raise ValueError(
                "gradient_source: task=prompts has prompts and no image-text pairs; take "
                "gradient_source=prompts (model=sd, sd15, ...)"
            )
        self.layer_search.check(model, task)

    def __call__(self, model: Editable, task: Task, run: Run) -> Edit:
        """The edit. It has no delta for a name whose search chose no step.

        Raises:
            ValueError: The gradients in `run.gradient_file` do not match this model, data or settings.
        """
        layer_search = self.layer_search.ready(model, task)
        edits: list[Edit] = []
        taken: list[Gradients] = []
        for name in task.names:
            gradients = self.gradients(model, task, name, self.recipe, run)
            if gradients is None:
                continue
            log_gradients(name, gradients, run)
            search = run_search(layer_search, model, gradients, task.only(name), name, run)
            edits.append(edit_of(search, model, gradients))
            taken.append(next(iter(gradients.values())))
        # The pairs that each mean gradient is over are counted. Those of the extra pass, which takes out
        # pairs that mention a name, are not.
        # Each name has its own forget set; all names share one retain set.
        samples = sum(one.n_forget for one in taken) + max((one.n_retain for one in taken), default=0)
        return replace(add_edits(edits), samples=len(model.clips) * samples)


def log_gradients(name: str, gradients: Mapping[str, Gradients], run: Run) -> None:
    """Log the norms of each encoder's gradients, and the numbers of pairs that they are means over."""
    for encoder, one in gradients.items():
        pairs = [one.n_forget, one.n_retain]
        run.log("gradients", {"concept": name, "encoder": encoder, "norms": norms(one), "n": pairs})

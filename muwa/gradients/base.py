"""The contract of a gradient source, which gives the gradients that a method steps along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from muwa.gradients.accumulation import PRECISIONS
from muwa.gradients.losses import by_name

if TYPE_CHECKING:
    from muwa.models.base import Editable, Observer
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.gradients import Gradients, Moments


@dataclass(frozen=True)
class BatchLoss:
    """A loss, and the batches that its gradient is summed over.

    Args:
        name: "cosine" | "contrastive" (`muwa.gradients.losses`).
        batch_size: Number of pairs per batch. The other pairs of a batch are the negatives of the contrastive
            loss, so the batch size changes the result.
        seed: Seed for the order of the pairs.
        precision: Precision of the forward pass: "fp32" | "bf16". Weights, losses and sums stay fp32.
    """

    name: str
    batch_size: int
    seed: int
    precision: str


@dataclass(frozen=True)
class Recipe:
    """How gradients are taken: all that they depend on besides the model and the data.

    Args:
        forget_loss, retain_loss: "cosine" | "contrastive" (`muwa.gradients.losses`).
        batch_size, seed, precision: As in `BatchLoss`.
        micro_batch_size: Pairs that are encoded at once; None takes whole batches. It changes the result by
            rounding only.
        retain_gradient: Whether the mean retain gradient is taken. A layer search that ranks layers by their
            gain does without (`LayerSearch.needs_retain_gradient`).

    Raises:
        ValueError: A setting is out of range; names it.
    """

    forget_loss: str
    retain_loss: str
    batch_size: int
    seed: int
    precision: str
    micro_batch_size: int | None = None
    retain_gradient: bool = True

    def __post_init__(self) -> None:
        for loss in (self.forget_loss, self.retain_loss):
            by_name(loss)
        if self.batch_size < 1:
            raise ValueError(f"method.batch_size: got {self.batch_size}, want at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"method.precision: got {self.precision!r}, want one of {', '.join(PRECISIONS)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(
                f"method.micro_batch_size: got {self.micro_batch_size}, want at least 1, "
                "or null for whole batches"
            )

    @property
    def forget(self) -> BatchLoss:
        """The forget loss with its batches."""
        return BatchLoss(self.forget_loss, self.batch_size, self.seed, self.precision)

    @property
    def retain(self) -> BatchLoss:
        """The retain loss with its batches."""
        return BatchLoss(self.retain_loss, self.batch_size, self.seed, self.precision)


class GradientSource(Protocol):
    """Gives the mean forget gradient of a name and the mean retain gradient, for each encoder of a model.

    Attributes:
        observes: The kind of observer that models must have; None: it fits all models.
        whitens: Whether its forget gradients are whitened (`Gradients.whitened`).
    """

    observes: ClassVar[type[Observer] | None] = None
    whitens: ClassVar[bool] = False

    @property
    def reads_pairs(self) -> bool:
        """Whether it reads the task's image-text pairs. If so, task=prompts, which has none, is refused."""
        return True

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if the model or the run does not support this source; before any compute.

        Raises:
            ValueError: Says which setting does not fit.
        """

    def __call__(
        self, model: Any, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """Encoder (a key of `model.clips`) -> the gradients of its CLIP; None on worker ranks.

        The retain gradient is taken only if the recipe asks for it.

        Gradients are those of the losses, with no sign flipped. A step along the forget gradient raises the
        forget loss.
        """

    def moments(
        self, model: Any, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """Encoder (a key of `model.clips`) -> the second moments of its weights on the retain set.

        Retain pairs that mention a forgotten name are left out. None on worker ranks.

        Args:
            outputs: Whether the moments of the gradients at the outputs are computed too.
        """


@runtime_checkable
class TakesGradients(Protocol):
    """A method whose gradients can be exported (`python -m muwa.gradients export`).

    Attributes:
        recipe: How the method takes its gradients.
        gradients: The gradient source of the method.
    """

    @property
    def recipe(self) -> Recipe:
        """See the class."""

    @property
    def gradients(self) -> GradientSource:
        """See the class."""

"""Task arithmetic: fine-tune on the forget pairs, then subtract that change (arXiv 2212.04089, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from muwa.gradients.losses import by_name
from muwa.methods._checks import check_each_above_zero, refuse_gradient_file
from muwa.methods._edits import Deltas, edit_of, forget_pairs
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._finetune import Phase, Schedule, tune
from muwa.methods._selection import SelectionSettings, cached_trace, evaluate_each, search_of
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.ranges import Count, Fractions, LearningRate, Loss, NotNegative, Seed

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Split, Task
    from muwa.types.edit import Edit

SCALES = tuple(i / 20 for i in range(1, 21))  # the paper's: 0.05 to 1


@dataclass(frozen=True)
class TaskArithmetic(SelectionSettings, Method):
    """theta' = theta - scale (theta_ft - theta). Here theta_ft minimises the forget loss on the forget pairs.

    So the model first learns the forget pairs better, then moves the opposite way. Several names are learned
    and forgotten together, their pairs joined. All weights are trained. In the record, `Move.step` holds the
    scale.

    Args:
        scales: Scales to try, in this order; None for the paper's 0.05, 0.1, ..., 1. A scale above 1 is
            allowed.
        forget_loss: "cosine" | "contrastive". Its sign is not flipped.
        epochs, learning_rate, weight_decay, batch_size, seed: Settings of the fine-tuning, see
            `muwa.methods._finetune.Schedule`.
        rule, criterion, target: Which scale becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no scale is feasible. One training and one sweep serve both rules.

    Raises:
        ValueError: The loss is not finite.

    Source: the paper's section 3 (forgetting by negation), with a learning rate of 1e-5, weight decay 0.1 and
    a cosine schedule. We differ: the paper fine-tunes the image tower on a labelled task, in 2,000 steps of
    128 images. We fine-tune both towers on image-text pairs, and the loss is our choice.
    """

    observes: ClassVar[type[Observer]] = Features

    scales: Fractions | None
    forget_loss: Loss
    epochs: Count
    learning_rate: LearningRate
    weight_decay: NotNegative
    batch_size: Count
    seed: Seed

    @property
    def schedule(self) -> Schedule:
        """Schedule of the fine-tuning."""
        return Schedule(self.epochs, self.batch_size, self.learning_rate, self.weight_decay, self.seed)

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=task_arithmetic", self.observes, model)
        refuse_gradient_file("task_arithmetic", run)
        _ = self.selection, self.schedule  # these records raise for a setting that is out of range
        by_name(self.forget_loss)
        check_each_above_zero("scales", _scales(self))
        forget_pairs(task)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        phases, scales = (Phase(forget_pairs(task), self.forget_loss),), _scales(self)
        free = {"run": run}
        tuned = run.cached(
            "task_vector", tune, model, phases, self.schedule, None, None, _free=free, _resume="state"
        )
        vector: Deltas = tuned["deltas"]["last"]
        found = cached_trace(
            run, sweep, model, vector, task.probe, scales, self.target, self.criterion, task=task
        )
        search = search_of(task, self.selection, found, "scales")
        deltas = negated(vector, scales[search.chosen]) if search.chosen is not None else {}
        return edit_of(task, search, deltas, tuned["samples"])


def _scales(method: TaskArithmetic) -> tuple[float, ...]:
    return SCALES if method.scales is None else tuple(method.scales)


def negated(vector: Mapping[str, Tensor], scale: float) -> Deltas:
    """`-scale * vector`, tensor by tensor."""
    return {name: -scale * delta for name, delta in vector.items()}


def sweep(
    model: Clip,
    vector: Mapping[str, Tensor],
    probe: Split,
    scales: Sequence[float],
    target: float,
    criterion: str,
    *,
    run: Run,
) -> dict[str, Any]:
    """Evaluate each scale in turn: see `muwa.methods._selection.evaluate_each`."""
    evaluator = EditEvaluator(
        model.observe(run), probe, criterion=criterion, target=target, step_unit="scale"
    )
    edits = ((scale, negated(vector, scale)) for scale in scales)
    return evaluate_each(evaluator, edits, len(scales), "negating")

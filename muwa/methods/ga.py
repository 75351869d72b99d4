"""GA: gradient ascent on the forget loss, for all weights of a CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.losses import by_name
from muwa.methods._checks import refuse_gradient_file
from muwa.methods._edits import forget_pairs
from muwa.methods._finetune import FineTuningSettings, Phase, fine_tuned_edit
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features
from muwa.types.ranges import Loss

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.edit import Edit


@dataclass(frozen=True)
class GA(FineTuningSettings, Method):
    """Maximise the forget loss with AdamW, on the forget pairs. Nothing protects what the model should keep.

    Several names are forgotten together, their pairs joined. All weights are trained. In the record,
    `Move.step` holds the learning rate.

    Args:
        forget_loss: "cosine" | "contrastive" (the `_o` variants of SLUG's release). Its sign is flipped here.

    The other settings are those of `muwa.methods._finetune.FineTuningSettings`.

    Raises:
        ValueError: The loss is not finite.

    Source: Thudi et al. 2022 (arXiv 2109.13398), as a baseline of SLUG (arXiv 2407.11867), table 1: 10
    epochs, batches of 32, weight decay 0.1, a cosine schedule. We differ: eval mode, no augmentation, no
    warm-up.
    """

    observes: ClassVar[type[Observer]] = Features

    forget_loss: Loss

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=ga", self.observes, model)
        refuse_gradient_file("ga", run)
        self.check_fine_tuning()
        by_name(self.forget_loss)
        forget_pairs(task)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        return fine_tuned_edit(self, model, task, [Phase(forget_pairs(task), self.forget_loss, -1)], run)

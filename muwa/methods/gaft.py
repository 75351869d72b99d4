"""GAFT: gradient ascent on the forget loss, then descent on the retain loss, for all weights of a CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.losses import by_name
from muwa.methods._checks import refuse_gradient_file
from muwa.methods._finetune import FineTuningSettings, ascent_and_descent, fine_tuned_edit
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
class GAFT(FineTuningSettings, Method):
    """Maximise the forget loss and minimise the retain loss with AdamW, in turn.

    An epoch is one pass over all forget pairs (ascent), then one over all retain pairs (descent). Several
    names are forgotten together, their pairs joined. All weights are trained. In the record, `Move.step`
    holds the learning rate.

    Args:
        forget_loss, retain_loss: "cosine" | "contrastive".

    The other settings are those of `muwa.methods._finetune.FineTuningSettings`.

    Raises:
        ValueError: The loss is not finite.

    Source: a baseline of SLUG (arXiv 2407.11867), table 1: ascent and descent in turn. Our choice: an epoch
    has both passes, the weights are evaluated after both, and both share one optimizer. We differ: eval mode,
    no augmentation, no warm-up.
    """

    observes: ClassVar[type[Observer]] = Features

    forget_loss: Loss
    retain_loss: Loss

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=gaft", self.observes, model)
        refuse_gradient_file("gaft", run)
        self.check_fine_tuning()
        for loss in (self.forget_loss, self.retain_loss):
            by_name(loss)
        ascent_and_descent(task, self.forget_loss, self.retain_loss)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        return fine_tuned_edit(
            self, model, task, ascent_and_descent(task, self.forget_loss, self.retain_loss), run
        )

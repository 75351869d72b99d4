"""GAFT: gradient ascent on the forget loss, then descent on the retain loss, for all weights of a CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from muwa.gradients.losses import by_name
from muwa.methods._checks import refuse_gradient_file
from muwa.methods._finetune import ascent_and_descent, check_fine_tuning, fine_tuned_edit
from muwa.methods.base import Method
from muwa.models.base import Editable, check_observer
from muwa.models.clip.embeddings import Features

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.edit import Edit


@dataclass(frozen=True)
class GAFT(Method):
    """Maximise the forget loss and minimise the retain loss with AdamW, in turn.

    An epoch is one pass over all forget pairs (ascent), then one over all retain pairs (descent). Several
    names are forgotten together, their pairs joined. All weights are trained. In the record, `Move.step`
    holds the learning rate.

    Args:
        forget_loss, retain_loss: "cosine" | "contrastive".
        epochs, learning_rate, weight_decay, batch_size, seed: `muwa.methods._finetune.Schedule`.
        rule, criterion, target: Which epoch becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no epoch is feasible; "first" is the rule of SLUG's release. One training serves
            both rules.
        patience, evals_per_epoch: `muwa.methods._finetune.Stops`.

    Raises:
        ValueError: The loss is not finite.

    Source: a baseline of SLUG (arXiv 2407.11867), table 1: ascent and descent in turn. Our choice: an epoch
    has both passes, the weights are evaluated after both, and both share one optimizer. We differ: eval mode,
    no augmentation, no warm-up.
    """

    forget_loss: str
    retain_loss: str
    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    rule: str
    criterion: str
    target: float
    patience: int | None
    evals_per_epoch: int
    seed: int

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=gaft", Features, model)
        refuse_gradient_file("gaft", run)
        check_fine_tuning(self)
        for loss in (self.forget_loss, self.retain_loss):
            by_name(loss)
        ascent_and_descent(task, self.forget_loss, self.retain_loss)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        return fine_tuned_edit(
            self, model, task, ascent_and_descent(task, self.forget_loss, self.retain_loss), run
        )

"""FT: fine-tune a CLIP on the retain pairs only, and hope that it forgets the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from muwa.gradients.losses import by_name
from muwa.methods._checks import refuse_gradient_file
from muwa.methods._edits import retain_pairs
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
class FT(FineTuningSettings, Method):
    """Minimise the retain loss with AdamW, on the retain pairs that do not mention a name to forget.

    The training sees no forget pair, so there is one training for all names of a task. All weights are
    trained. In the record, `Move.step` holds the learning rate.

    Args:
        retain_loss: "contrastive" | "cosine".

    The other settings are those of `muwa.methods._finetune.FineTuningSettings`.

    Raises:
        ValueError: The loss is not finite.

    Source: a baseline of SLUG (arXiv 2407.11867), table 1: 10 epochs, batches of 32, weight decay 0.1, a
    cosine schedule. We differ: eval mode, no augmentation, no warm-up.
    """

    observes: ClassVar[type[Observer]] = Features

    retain_loss: Loss

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=ft", self.observes, model)
        refuse_gradient_file("ft", run)
        self.check_fine_tuning()
        by_name(self.retain_loss)
        retain_pairs(task)

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        return fine_tuned_edit(self, model, task, [Phase(retain_pairs(task), self.retain_loss)], run)

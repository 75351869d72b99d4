"""FT: fine-tune a CLIP on the retain pairs and hope that it forgets the rest (the weakest rival of SLUG's table)."""

from __future__ import annotations

from pathlib import Path

from muwa.cache.store import Store
from muwa.gradients.losses import by_name
from muwa.layer_search.steps import Log, silent
from muwa.methods._finetune import Schedule, Section, Stops, descend
from muwa.methods._selection import check_choice, check_clip, retain_pairs
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Task
from muwa.types.edit import Edit


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    retain_loss: str = "contrastive",
    epochs: int = 10,
    learning_rate: float = 1e-6,
    weight_decay: float = 0.1,
    batch_size: int = 32,
    rule: str = "best",
    criterion: str = "top5",
    target: float = 0.0,
    patience: int | None = 2,
    evals_per_epoch: int = 1,
    seed: int = 0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """AdamW down the retain loss, on the retain pairs that do not mention what is forgotten.

    Args:
        task: What to forget; all its names at once, since none of their pairs is seen.
        retain_loss: "contrastive" | "cosine".
        epochs, learning_rate, weight_decay, batch_size: `muwa.methods._finetune.Schedule`.
        rule: Which epoch becomes the edit: "best", of the feasible ones `whole.best_of`, none if none is feasible;
            "first", the first with forget top-1 accuracy 0, else the lowest (the paper's). One training serves both.
        criterion, target, patience, evals_per_epoch: `muwa.methods._finetune.Stops`.
        gradient_file: Not used; refused.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit, of all weights; each name's move has the learning rate as its step.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP; the loss is no longer finite.

    Source: SLUG (arXiv 2407.11867), table 1, and section 1.10 of the facts: 10 epochs, batch 32, decay 0.1, cosine schedule.
    Differs: eval mode, no augmentation, no warm-up.
    """
    check_clip("ft", model, gradient_file)
    check_choice(rule, criterion, target)
    by_name(retain_loss)
    schedule = Schedule(epochs, batch_size, learning_rate, weight_decay, seed)
    stops = Stops(target, criterion, patience, evals_per_epoch)
    if not world.leads:
        return Edit({}, ())
    sections = [Section(retain_pairs(task), retain_loss)]
    return descend(model, task, sections, schedule, stops, rule, store=store, log=log, progress=progress)

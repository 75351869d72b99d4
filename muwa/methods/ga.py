"""GA: gradient ascent on the forget loss, of a whole CLIP (rival of SLUG's table)."""

from __future__ import annotations

from pathlib import Path

from muwa.cache.store import Store
from muwa.gradients.losses import by_name
from muwa.layer_search.steps import Log, silent
from muwa.methods._finetune import Schedule, Section, Stops, descend
from muwa.methods._selection import check_choice, check_clip, forget_pairs
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Task
from muwa.types.edit import Edit


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    forget_loss: str = "cosine",
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
    """AdamW *up* the forget loss, on the forget pairs; nothing holds the rest.

    Args:
        task: What to forget; several names are forgotten together, their pairs joined.
        forget_loss: "cosine" | "contrastive" (the release's `_o` variants); its sign is flipped here.
        epochs, learning_rate, weight_decay, batch_size: `muwa.methods._finetune.Schedule`.
        rule: Which epoch becomes the edit: "best", of the feasible ones `whole.best_of`, none if none is feasible;
            "first", the first with forget top-1 accuracy 0, else the lowest (the paper's). One training serves both.
        criterion, target, patience, evals_per_epoch: `muwa.methods._finetune.Stops`.
        gradient_file: Not used; refused: each step takes its own gradient.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit, of all weights; each name's move has the learning rate as its step.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP; the loss is no longer finite.

    Source: Thudi et al. 2022 (arXiv 2109.13398) as SLUG (arXiv 2407.11867) compares with it, section 1.10 of the facts:
    10 epochs, batch 32, decay 0.1, cosine schedule. Differs: eval mode, no augmentation, no warm-up.
    """
    check_clip("ga", model, gradient_file)
    check_choice(rule, criterion, target)
    by_name(forget_loss)
    schedule = Schedule(epochs, batch_size, learning_rate, weight_decay, seed)
    stops = Stops(target, criterion, patience, evals_per_epoch)
    if not world.leads:
        return Edit({}, ())
    sections = [Section(forget_pairs(task), forget_loss, -1)]
    return descend(model, task, sections, schedule, stops, rule, store=store, log=log, progress=progress)

"""GAFT: gradient ascent on the forget loss, then descent on the retain loss, in turn (rival of SLUG's table)."""

from __future__ import annotations

from pathlib import Path

from muwa.cache.store import Store
from muwa.gradients.losses import by_name
from muwa.layer_search.steps import Log, silent
from muwa.methods._finetune import Schedule, Section, Stops, descend
from muwa.methods._selection import check_choice, check_clip, forget_pairs, retain_pairs
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
    """AdamW up the forget loss through all forget pairs, then down the retain loss through all retain pairs: one epoch.

    Args:
        task: What to forget; several names are forgotten together, their pairs joined.
        forget_loss, retain_loss: "cosine" | "contrastive".
        epochs: Such rounds; each is one pass over the forget pairs and one over the retain pairs.
        learning_rate, weight_decay, batch_size: `muwa.methods._finetune.Schedule`.
        rule: Which epoch becomes the edit: "best", of the feasible ones `whole.best_of`, none if none is feasible;
            "first", the first with forget top-1 accuracy 0, else the lowest (the paper's). One training serves both.
        criterion, target, patience, evals_per_epoch: `muwa.methods._finetune.Stops`.
        gradient_file: Not used; refused: each step takes its own gradient.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit, of all weights; each name's move has the learning rate as its step.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP; the loss is no longer finite.

    Source: SLUG (arXiv 2407.11867), section 1.10 of the facts: an epoch of ascent, then one of descent, alternating. Chosen
    here: one epoch of the count is one such pair, the weights are judged after it, and one optimizer serves both. Differs:
    eval mode, no augmentation, no warm-up.
    """
    check_clip("gaft", model, gradient_file)
    check_choice(rule, criterion, target)
    for loss in (forget_loss, retain_loss):
        by_name(loss)
    schedule = Schedule(epochs, batch_size, learning_rate, weight_decay, seed)
    stops = Stops(target, criterion, patience, evals_per_epoch)
    if not world.leads:
        return Edit({}, ())
    sections = [Section(forget_pairs(task), forget_loss, -1), Section(retain_pairs(task), retain_loss)]
    return descend(model, task, sections, schedule, stops, rule, store=store, log=log, progress=progress)

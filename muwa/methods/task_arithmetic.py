"""Task arithmetic: learn the forgotten better, then go the other way (arXiv 2212.04089, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.losses import by_name
from muwa.layer_search.steps import Log, silent
from muwa.methods._finetune import Schedule, Section, tune
from muwa.methods._selection import (
    Deltas,
    EditEvaluator,
    Tell,
    check_choice,
    check_clip,
    edit_of,
    forget_pairs,
    judge_each,
    remembered,
    search_of,
    untold,
)
from muwa.methods._unet import check_above_zero
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Split, Task
from muwa.types.edit import Edit

SCALES = tuple(i / 20 for i in range(1, 21))  # 0.05 to 1, the paper's; 0 is no edit


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    scales: Sequence[float] | None = None,
    forget_loss: str = "cosine",
    epochs: int = 10,
    learning_rate: float = 1e-6,
    weight_decay: float = 0.1,
    batch_size: int = 32,
    rule: str = "best",
    criterion: str = "top5",
    target: float = 0.0,
    seed: int = 0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """theta' = theta - scale (theta_ft - theta), theta_ft fine-tuned *down* the forget loss on the forget pairs.

    Args:
        task: What to forget; several names are learned and forgotten together, their pairs joined.
        scales: To try, in that order; None for the paper's 0.05, 0.1, ..., 1.
        forget_loss: "cosine" | "contrastive"; its sign is not flipped.
        epochs, learning_rate, weight_decay, batch_size: `muwa.methods._finetune.Schedule`, of the fine-tuning.
        rule: Which scale becomes the edit: "best", of the feasible ones `whole.best_of`, none if there is none;
            "first", the first with forget top-1 accuracy 0, else the lowest. One training and one sweep serve both.
        criterion, target: A scale is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        gradient_file: Not used; refused: each step takes its own gradient.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit, of all weights; each name's move has the scale as its step.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP; the loss is no longer finite.

    Source: the paper's section 3 (forgetting by negation), learning rate 1e-5, decay 0.1, cosine schedule. Differs: there
    the image tower is fine-tuned on a labelled task in 2,000 steps of 128; here both towers on image-text pairs, down a
    loss that is ours. A scale above 1 may be asked for.
    """
    check_clip("task_arithmetic", model, gradient_file)
    check_choice(rule, criterion, target)
    by_name(forget_loss)
    schedule = Schedule(epochs, batch_size, learning_rate, weight_decay, seed)
    tried = SCALES if scales is None else tuple(scales)
    if not tried:
        raise ValueError("method.scales: got none, want at least one")
    check_above_zero({f"scales[{i}]": scale for i, scale in enumerate(tried)})
    if not world.leads:
        return Edit({}, ())
    sections = (Section(forget_pairs(task), forget_loss),)
    tuned = store.get("task_vector", tune, model, sections, schedule, None, None, _free={"progress": progress},
                      _resume="state")  # fmt: skip
    vector: Deltas = tuned["kept"]["last"]
    free = {"features": Features(model, store), "progress": progress}
    found = remembered(store, sweep, model, vector, task.probe, tried, target, criterion, task=task, log=log, free=free)
    search = search_of(task, rule, criterion, found["before"], found["trace"], "scales")
    deltas = negated(vector, tried[search.chosen]) if search.chosen is not None else {}
    return edit_of(task, search, deltas, tuned["samples"])


def negated(vector: Mapping[str, Tensor], scale: float) -> Deltas:
    """`-scale * vector`, tensor by tensor."""
    return {name: -scale * delta for name, delta in vector.items()}


def sweep(
    model: Clip, vector: Mapping[str, Tensor], probe: Split, scales: Sequence[float], target: float, criterion: str, *,
    features: Features | None = None, tell: Tell = untold, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Judge each scale: {"before": the unedited model's row, "trace": a row a scale, in their order}."""
    edit_evaluator = EditEvaluator(model, probe, features, target=target, criterion=criterion)
    return judge_each(edit_evaluator, ((s, negated(vector, s)) for s in scales), len(scales), "negating", tell, progress)

"""SalUn: GAFT that moves only the weights which the forget loss depends on most (arXiv 2310.12508, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.files import read_gradients
from muwa.gradients.mean import Recipe, gradient_sum, origin
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
    share: float = 0.5,
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
    """GAFT on the `share` of all weights with the largest |g_f|, ranked globally (`largest`); all others keep their bits.

    Args:
        task: What to forget; several names are forgotten together, their pairs joined; g_f is then the mean over all pairs.
        share: Of all single weights of the model, in (0, 1].
        forget_loss, retain_loss: "cosine" | "contrastive"; g_f is of the forget loss at the unedited weights.
        epochs: Rounds of one pass over the forget pairs (ascent) and one over the retain pairs (descent).
        learning_rate, weight_decay, batch_size: `muwa.methods._finetune.Schedule`.
        rule: Which epoch becomes the edit: "best", of the feasible ones `whole.best_of`, none if none is feasible;
            "first", the first with forget top-1 accuracy 0, else the lowest (the paper's). One training serves both.
        criterion, target, patience, evals_per_epoch: `muwa.methods._finetune.Stops`.
        gradient_file: Gradients of `python -m muwa.gradients export`, checked against this run, in place of computing g_f.
        world: The processes that take g_f together; all but the first stop after that, with an empty edit.

    Returns:
        The edit; each name's move has the learning rate as its step. `samples` counts the pass that gave g_f too.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP; the loss is no longer finite.

    Source: the paper's saliency mask and masked update, its threshold the median, here the `share`; combined with GAFT
    as SLUG (arXiv 2407.11867) compares with it. Differs: weight decay does not move what is masked either.
    """
    check_clip("salun", model)
    check_choice(rule, criterion, target)
    recipe = Recipe(forget_loss, retain_loss, batch_size, seed)
    schedule = Schedule(epochs, batch_size, learning_rate, weight_decay, seed)
    stops = Stops(target, criterion, patience, evals_per_epoch)
    if not 0 < share <= 1:
        raise ValueError(f"method.share: got {share}, want a share of all weights in (0, 1]")
    found = forget_gradient(
        model, task, recipe, store=store, gradient_file=gradient_file, world=world, progress=progress
    )
    if found is None:
        return Edit({}, ())
    sections = [Section(forget_pairs(task), forget_loss, -1), Section(retain_pairs(task), retain_loss)]
    edit = descend(model, task, sections, schedule, stops, rule, store=store, log=log, mask=largest(found, share),
                   progress=progress)  # fmt: skip
    return replace(edit, samples=edit.samples + len(sections[0].pairs))


def forget_gradient(
    model: Clip, task: Task, recipe: Recipe, *, store: Store, gradient_file: Path | None, world: Distributed, progress: bool
) -> dict[str, Tensor] | None:
    """The mean gradient of the forget loss over the pairs of all names, read back where it was seen before; None on all
    ranks but the first.

    Raises:
        ValueError: The gradient file was computed from something else.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for name in task.names:
        if gradient_file is not None:
            if not world.leads:
                return None
            read = read_gradients(gradient_file, origin(model, task, name, recipe))
            some, n = {key: read.n_forget * g for key, g in read.forget.items()}, read.n_forget
        else:
            got = store.get(
                "gradients/forget", gradient_sum, model, task.forget[name], loss=recipe.forget_loss,
                batch_size=recipe.batch_size, seed=recipe.seed, precision=recipe.precision,
                _free={"progress": progress, "world": world, "micro_batch_size": None}, _world=world,
            )  # fmt: skip
            if not world.leads:
                continue
            some, n = got["sum"], got["n"]
        total = {key: total[key] + g if key in total else g for key, g in some.items()}
        count += n
    return {key: g / count for key, g in total.items()} if world.leads else None


def largest(gradient: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Which single weights have the largest |gradient|, ranked over all tensors together: exactly round(share * all).

    Of equal ones the earlier is taken: in the order of `gradient`, then of its elements.

    Returns:
        Name -> bool tensor of the gradient's shape.

    >>> masks = largest({"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([2.0, 1.0])}, 0.75)
    >>> masks["a"].tolist(), masks["b"].tolist()
    ([True, True], [True, False])
    """
    sizes = torch.cat([g.detach().abs().flatten().float().cpu() for g in gradient.values()])
    k = round(share * len(sizes))
    if k == 0:
        return {name: torch.zeros_like(g, dtype=torch.bool) for name, g in gradient.items()}
    least = float(np.partition(sizes.numpy(), len(sizes) - k)[len(sizes) - k])  # the k-th largest
    taken = sizes > least
    equal = (sizes == least).nonzero().flatten()
    taken[equal[: k - int(taken.sum())]] = True
    parts = taken.split([g.numel() for g in gradient.values()])
    return {name: part.view(g.shape) for (name, g), part in zip(gradient.items(), parts, strict=True)}

"""The gradient stage: one mean gradient of each loss, of the whole model, at the unedited weights.

    python -m muwa.gradients export RUN FILE       # hand a run's gradients on; another run reads them: gradients=FILE

Eval mode, no augmentation, a fixed order: the same inputs give the same bits. Sums over pairs are kept rather than means,
so that a retain gradient shared by a whole sweep can be corrected for the few pairs that mention what is being forgotten:
one pass over the batches that hold them gives the loss without them minus the loss with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from muwa.cache.store import Store
from muwa.fingerprint import digest
from muwa.gradients.accumulation import PRECISIONS, accumulate, leaving_out, whole
from muwa.gradients.losses import by_name
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Pairs, Task
from muwa.types.gradients import Gradients

FORMAT = "muwa.gradients/1"


def plan(n: int, batch_size: int, seed: int | Sequence[int]) -> list[list[int]]:
    """Which pairs form which batch: a permutation of `n` by `seed`, cut in `batch_size`."""
    order = np.random.default_rng(seed).permutation(n).tolist()
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def gradient_sum(
    model: Clip, pairs: Pairs, *, loss: str, batch_size: int, seed: int, precision: str = "fp32",
    without: tuple[int, ...] = (), micro_batch_size: int | None = None, world: Distributed = ALONE, progress: bool = False,
) -> dict[str, object]:  # fmt: skip
    """Sum over pairs of the gradient of a batch-mean loss: `sum_b n_b * grad(loss_b)`.

    Args:
        model: Its weights are not changed; gradients are taken of every parameter, in eval mode.
        loss: "cosine" or "contrastive" (`muwa.gradients.losses`). Its sign is kept: the gradient points to a *higher* loss.
        batch_size: For the contrastive loss it sets the negatives, so it is part of the result.
        seed: Of the order of pairs.
        precision: "fp32" or "bf16" (`muwa.gradients.accumulation.accumulate`).
        without: Give instead what leaving these pairs out of their batches adds to that sum: one pass over the batches
            that hold them.
        micro_batch_size, world: How the work is cut; they change the result by rounding only.

    Returns:
        {"sum": parameter name -> tensor of its shape, "n": pairs used (negative: left out)}. Parameters the loss does not
        reach are zero.

    Raises:
        ValueError: There are no pairs.

    Source: SLUG (arXiv 2407.11867), section 1.1 of the facts. Differs from the release: eval mode and no
    augmentation; weighted by samples, so that a short last batch does not count as a full one; gradients start from
    zero for every loss.
    """
    if not len(pairs):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    batches = plan(len(pairs), batch_size, seed)
    jobs, left_out = leaving_out(batches, without) if without else (whole(batches), 0)
    total = accumulate(
        model, pairs, jobs, by_name(loss), f"{loss} gradient", precision=precision, micro_batch_size=micro_batch_size,
        world=world, progress=progress,
    )  # fmt: skip
    return {"sum": total, "n": -left_out if without else len(pairs)}


@dataclass(frozen=True)
class Recipe:
    """How gradients are taken: everything beside model and data that enters them."""

    forget_loss: str
    retain_loss: str
    batch_size: int
    seed: int
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for loss in (self.forget_loss, self.retain_loss):
            by_name(loss)  # an unknown one is an error here, before anything is computed
        if self.batch_size < 1:
            raise ValueError(f"method.batch_size: got {self.batch_size}, want at least 1")
        if self.precision not in PRECISIONS:
            raise ValueError(f"method.precision: got {self.precision!r}, want one of {', '.join(PRECISIONS)}")


def gradients(
    model: Clip, task: Task, name: str, recipe: Recipe, *, store: Store, micro_batch_size: int | None = None,
    world: Distributed = ALONE, progress: bool = False,
) -> Gradients | None:  # fmt: skip
    """Mean forget gradient of `name` and mean retain gradient, each part read back from `store` if it was seen before.

    The retain sum over all retain pairs is shared by every request on the same data; pairs of `task.mentions` are taken
    out of it exactly, by one pass over the batches that hold them.

    Args:
        micro_batch_size: Pairs encoded at once; None takes whole batches.
        world: The processes that take gradients together; all of them must call this.

    Returns:
        Means over pairs, sign of the losses; None on all ranks but the first.
    """
    if len(task.mentions) >= len(task.retain):
        raise ValueError(
            f"{name}: all {len(task.retain)} retain pairs mention what is to be forgotten; want some that do not: "
            "name other pairs in dataset.retain, or fewer aliases"
        )
    free = {"progress": progress, "world": world, "micro_batch_size": micro_batch_size}
    own: dict[str, Any] = {"batch_size": recipe.batch_size, "seed": recipe.seed, "precision": recipe.precision}
    own |= {"_free": free, "_world": world}
    forget = store.get("gradients/forget", gradient_sum, model, task.forget[name], loss=recipe.forget_loss, **own)
    kept = {"loss": recipe.retain_loss, **own}
    retain = store.get("gradients/retain", gradient_sum, model, task.retain, **kept)
    less = None
    if task.mentions:
        less = store.get("gradients/mentions", gradient_sum, model, task.retain, without=task.mentions, **kept)
    if not world.leads:
        return None
    n_retain = retain["n"] + (less["n"] if less else 0)
    assert n_retain > 0  # refused above, before anything is computed
    for key, total in retain["sum"].items():  # read back for this call alone: changed in place
        (total.add_(less["sum"][key]) if less else total).div_(n_retain)
        forget["sum"][key].div_(forget["n"])
    return Gradients(forget["sum"], retain["sum"], forget["n"], n_retain, origin(model, task, name, recipe))


def origin(model: Clip, task: Task, name: str, recipe: Recipe) -> dict[str, str]:
    """What gradients depend on, by part: model, forget pairs, retain pairs, losses, batch size and seed."""
    left_out = digest([str(i) for i in task.mentions])
    return {
        "model": model.fingerprint,
        "forget_pairs": task.forget[name].fingerprint,
        "retain_pairs": digest([task.retain.fingerprint, left_out]),
        "losses": f"{recipe.forget_loss}/{recipe.retain_loss}",
        "batch_size": str(recipe.batch_size),
        "seed": str(recipe.seed),
        "precision": recipe.precision,
    }

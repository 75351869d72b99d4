"""The gradient stage: the mean gradients of the forget loss and the retain loss at the unedited weights.

    python -m muwa.gradients export RUN FILE       # write a run's gradients to a file
    python launch.py gradients=FILE                # take them in place of computing them

The model is in eval mode and there is no augmentation. The order is fixed, so the same inputs give the same
bits. The cache keeps sums over pairs, not means. So all requests on the same data share one retain sum. It is
corrected for the pairs that mention a forgotten name: one pass over the batches with such pairs gives their
loss without these pairs minus their loss with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from torch import Tensor

from muwa.fingerprint import digest
from muwa.gradients.accumulation import accumulate, leaving_out, whole
from muwa.gradients.base import BatchLoss, GradientSource, Recipe
from muwa.gradients.files import read_gradients
from muwa.gradients.losses import by_name
from muwa.types.gradients import Gradients

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Pairs, Task


class GradientSum(TypedDict):
    """A gradient summed over pairs by parameter name, and the number of pairs (negative: left out)."""

    sum: dict[str, Tensor]
    n: int


def plan(n: int, batch_size: int, seed: int | Sequence[int]) -> list[list[int]]:
    """Which pairs form which batch: a permutation of `n` by `seed`, cut in `batch_size`."""
    order = np.random.default_rng(seed).permutation(n).tolist()
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def gradient_sum(
    model: Clip,
    pairs: Pairs,
    loss: BatchLoss,
    *,
    without: tuple[int, ...] = (),
    micro_batch_size: int | None = None,
    run: Run,
) -> GradientSum:
    """The gradient of a batch-mean loss, summed over pairs: `sum over batches b of n_b * grad(loss_b)`.

    Args:
        model: In eval mode. Its weights are not changed. Gradients are taken by every parameter.
        loss: The loss and its batches. The sign is that of the loss: the gradient points to a *higher* loss.
        without: Give the change of that sum when these pairs are left out of their batches instead. It takes
            one pass over the batches that hold them.
        micro_batch_size: Pairs that are encoded at once; None takes whole batches. It changes the result by
            rounding only.
        run: Its processes share the work: all of them must call this. Take `Run()` where only the main rank
            calls it.

    Returns:
        The sum, and the number of pairs in it. Parameters that the loss does not reach are zero.

    Raises:
        ValueError: There are no pairs.

    Source: SLUG (arXiv 2407.11867), algorithm 1. Differs from the release in four ways. The model is in eval
    mode. There is no augmentation. Batches are weighted by their pairs, so that a short last batch does not
    count as a full one. The gradient of each loss starts from zero.
    """
    if not len(pairs):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    batches = plan(len(pairs), loss.batch_size, loss.seed)
    jobs, left_out = leaving_out(batches, without) if without else (whole(batches), 0)
    total = accumulate(
        model,
        pairs,
        jobs,
        by_name(loss.name),
        f"{loss.name} gradient",
        precision=loss.precision,
        micro_batch_size=micro_batch_size,
        run=run,
    )
    return {"sum": total, "n": -left_out if without else len(pairs)}


def retain_pairs(task: Task) -> Pairs:
    """The retain set without the pairs that mention a forgotten name."""
    mentions = set(task.mentions)
    return task.retain.select([i for i in range(len(task.retain)) if i not in mentions])


def forget_sum(model: Clip, task: Task, name: str, recipe: Recipe, run: Run) -> GradientSum:
    """The gradient of the forget loss, summed over the forget set of `name`; cached.

    All ranks must call this; worker ranks get None.
    """
    free = {"run": run, "micro_batch_size": recipe.micro_batch_size}
    return run.cached(
        "gradients/forget", gradient_sum, model, task.forget[name], recipe.forget, _free=free, _together=True
    )


def mean_gradients(model: Clip, task: Task, name: str, recipe: Recipe, run: Run) -> Gradients | None:
    """The mean forget gradient of `name` and the mean retain gradient, of one CLIP. Their sums are cached.

    All requests on the same data share the sum over the whole retain set. Pairs of `task.mentions` are taken
    out of it exactly, by one pass over the batches that hold them.

    Args:
        run: Its processes take gradients together: all of them must call this.

    Returns:
        Means over pairs, with the signs of the losses; None on worker ranks.

    Raises:
        ValueError: Every pair of the retain set mentions what is to be forgotten.
    """
    if len(task.mentions) >= len(task.retain):
        raise ValueError(
            f"{name}: all {len(task.retain)} retain pairs mention what is to be forgotten; "
            "want some that do not: name other pairs in dataset.retain, or fewer aliases"
        )
    free = {"run": run, "micro_batch_size": recipe.micro_batch_size}
    forget = forget_sum(model, task, name, recipe, run)
    retain: GradientSum = run.cached(
        "gradients/retain", gradient_sum, model, task.retain, recipe.retain, _free=free, _together=True
    )
    change: GradientSum | None = None
    if task.mentions:
        change = run.cached(
            "gradients/mentions",
            gradient_sum,
            model,
            task.retain,
            recipe.retain,
            without=task.mentions,
            _free=free,
            _together=True,
        )
    if not run.is_main:
        return None
    n_retain = retain["n"] + (change["n"] if change else 0)
    for key, total in retain["sum"].items():  # no one else has these tensors: they are changed in place
        (total.add_(change["sum"][key]) if change else total).div_(n_retain)
        forget["sum"][key].div_(forget["n"])
    return Gradients(forget["sum"], retain["sum"], forget["n"], n_retain, origin(model, task, name, recipe))


@dataclass(frozen=True)
class ClipGradients(GradientSource):
    """Both gradients of each encoder's CLIP: computed, or read from `run.gradient_file`.

    Source: SLUG (arXiv 2407.11867), algorithm 1; docs/method.md, step 1.
    """

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise for a gradient file where the model has several CLIPs.

        Raises:
            ValueError: One file holds the gradients of one CLIP.
        """
        if run.gradient_file is not None and len(model.clips) > 1:
            raise ValueError(
                f"gradients={run.gradient_file}: a file holds the gradients of one CLIP, and {model.source} "
                f"has {len(model.clips)} ({', '.join(model.clips)}); leave gradients=null to compute them"
            )

    def __call__(
        self, model: Editable, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The gradients of each CLIP of `model`; None on worker ranks.

        Raises:
            ValueError: The gradient file was computed from something else.
        """
        each = {}
        for encoder, clip in model.clips.items():
            if run.gradient_file is None:
                gradients = mean_gradients(clip, task, name, recipe, run)
            elif run.is_main:
                gradients = read_gradients(run.gradient_file, origin(clip, task, name, recipe))
            else:
                gradients = None
            if gradients is not None:
                each[encoder] = gradients
        return each if run.is_main else None


def origin(model: Clip, task: Task, name: str, recipe: Recipe) -> dict[str, str]:
    """What gradients depend on: model, forget pairs, retain pairs, losses, batch size, seed, precision."""
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


def norms(gradients: Gradients) -> dict[str, dict[str, float]]:
    """Parameter name -> {"forget": |g_f|, "retain": |g_r|}, Euclidean norms."""
    return {
        name: {"forget": g.norm().item(), "retain": gradients.retain[name].norm().item()}
        for name, g in gradients.forget.items()
    }

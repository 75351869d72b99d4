"""The gradient stage: the mean gradients of the forget loss and the retain loss at the unedited weights.

    python -m muwa.gradients export RUN FILE       # write a run's gradients to a file
    python launch.py gradients=FILE                # read them from that file instead of computing them

The model is in eval mode and there is no augmentation. The order is fixed, so the same inputs give the same
bits. The cache stores sums over pairs, not means, so that all tasks on the same data share one sum over the
retain set. It is corrected for the retain pairs that mention a forgotten name. One more pass, over the
batches with such pairs, gives the gradient of these batches without the pairs minus the gradient with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from torch import Tensor

from muwa.fingerprint import digest
from muwa.gradients.accumulation import Job, accumulate, full_batch_jobs, leave_out_jobs
from muwa.gradients.base import BatchLoss, GradientSource, Recipe
from muwa.gradients.files import read_gradients
from muwa.gradients.losses import by_name
from muwa.gradients.moments import clip_input_sums, clip_output_sums, minus
from muwa.types.gradients import FORGET_ALONE, Gradients, Moments
from muwa.types.ranges import Count, Loss, Seed

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.types.data import Pairs, Task


class GradientSum(TypedDict):
    """A gradient summed over pairs, by parameter name; and their number, negative if pairs were taken out."""

    sum: dict[str, Tensor]
    n: int


def shuffled_batches(n: int, batch_size: int, seed: int | Sequence[int]) -> list[list[int]]:
    """A seeded permutation of `n`, cut into batches of `batch_size`; the last batch may be smaller."""
    order = np.random.default_rng(seed).permutation(n).tolist()
    return [order[i : i + batch_size] for i in range(0, n, batch_size)]


def gradient_sum(
    model: Clip, pairs: Pairs, loss: BatchLoss, *, micro_batch_size: int | None = None, run: Run
) -> GradientSum:
    """The gradient of a batch-mean loss, summed over pairs: `sum over batches b of n_b * grad(loss_b)`.

    Args:
        model: A CLIP in eval mode. Its weights are not changed.
        loss: The loss and its batches. Its sign is not changed: the gradient points towards a *higher* loss.
        micro_batch_size: Pairs that are encoded at once; None takes whole batches. It changes the result by
            rounding only.
        run: Its processes share the work: all of them must call this. Where only the main rank calls it, give
            `Run()`.

    Returns:
        The sum, with respect to every parameter; and the number of pairs in it. Parameters that the loss does
        not reach have zeros.

    Raises:
        ValueError: There are no pairs.

    Source: SLUG (arXiv 2407.11867), algorithm 1. Differs from the release in four ways:

    - The model is in eval mode.
    - There is no augmentation.
    - Batches are weighted by their numbers of pairs, so that a short last batch does not count as a full one.
    - Gradients are reset before each loss; the release's Hugging Face scripts let them accumulate over
      batches.
    """
    if not len(pairs):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    jobs = full_batch_jobs(shuffled_batches(len(pairs), loss.batch_size, loss.seed))
    total = _accumulated(model, pairs, loss, jobs, micro_batch_size, run)
    return {"sum": total, "n": len(pairs)}


def leave_out_change(
    model: Clip,
    pairs: Pairs,
    loss: BatchLoss,
    left_out: tuple[int, ...],
    *,
    micro_batch_size: int | None = None,
    run: Run,
) -> GradientSum:
    """The change of `gradient_sum(model, pairs, loss)` when pairs are left out of their batches.

    It takes one pass over the batches that hold such pairs.

    Args:
        left_out: Indices of the pairs that are left out.
        model, loss, micro_batch_size, run: As in `gradient_sum`.

    Returns:
        `sum`: the sum without these pairs minus the sum with them. `n`: the number of pairs left
        out, negated.
    """
    batches = shuffled_batches(len(pairs), loss.batch_size, loss.seed)
    jobs, count = leave_out_jobs(batches, left_out)
    return {"sum": _accumulated(model, pairs, loss, jobs, micro_batch_size, run), "n": -count}


def _accumulated(
    model: Clip, pairs: Pairs, loss: BatchLoss, jobs: list[Job], micro_batch_size: int | None, run: Run
) -> dict[str, Tensor]:
    """`accumulate` with the settings of `loss`."""
    return accumulate(
        model,
        pairs,
        jobs,
        by_name(loss.name),
        f"{loss.name} gradient",
        precision=loss.precision,
        micro_batch_size=micro_batch_size,
        run=run,
    )


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

    Args:
        recipe: Says whether the retain gradient is taken.
        run: Its processes take gradients together: all of them must call this.

    Returns:
        Means over pairs, with the signs of the losses; None on worker ranks.

    Raises:
        ValueError: The retain set is empty, or all of its pairs mention what is to be forgotten.
    """
    if not len(task.retain):
        raise ValueError(f"{name}: the retain set (dataset.retain) is empty")
    if len(task.mentions) >= len(task.retain):
        raise ValueError(
            f"{name}: all {len(task.retain)} retain pairs mention what is to be forgotten; "
            "want some that do not: point dataset.retain at other pairs, or give fewer aliases"
        )
    forget = forget_sum(model, task, name, recipe, run)
    retain = retain_sum(model, task, recipe, run) if recipe.retain_gradient else GradientSum(sum={}, n=0)
    if not run.is_main:
        return None
    for side in (forget, retain):
        for total in side["sum"].values():  # nothing else uses these tensors, so they are changed in place
            total.div_(side["n"])
    return Gradients(
        forget["sum"], retain["sum"], forget["n"], retain["n"], origin(model, task, name, recipe)
    )


def retain_sum(model: Clip, task: Task, recipe: Recipe, run: Run) -> GradientSum:
    """The gradient of the retain loss, summed over the retain set of a task; cached.

    All tasks on the same data share the sum over the whole retain set. The retain pairs that mention a
    forgotten name (`task.mentions`) are taken out of it exactly, by one pass over the batches that hold them.

    All ranks must call this; worker ranks get None.
    """
    free = {"run": run, "micro_batch_size": recipe.micro_batch_size}
    retain: GradientSum = run.cached(
        "gradients/retain", gradient_sum, model, task.retain, recipe.retain, _free=free, _together=True
    )
    if not task.mentions:
        return retain
    change: GradientSum = run.cached(
        "gradients/mentions",
        leave_out_change,
        model,
        task.retain,
        recipe.retain,
        task.mentions,
        _free=free,
        _together=True,
    )
    if run.is_main:
        retain["n"] += change["n"]
        for key, total in retain["sum"].items():  # nothing else uses these tensors
            total.add_(change["sum"][key])
    return retain


@dataclass(frozen=True)
class ClipGradients(GradientSource):
    """Both gradients of each encoder's CLIP: computed, or read from `run.gradient_file`.

    Source: SLUG (arXiv 2407.11867), algorithm 1; docs/method.md, "Gradients".
    """

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if a gradient file is given for a model with several CLIPs.

        Raises:
            ValueError: A gradient file was given, which holds the gradients of one CLIP, but the model has
                several.
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
            ValueError: The gradient file was computed from another model, other data or other settings.
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

    def moments(
        self, model: Editable, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of each CLIP of `model`; None on worker ranks."""
        each = {}
        for encoder, clip in model.clips.items():
            inputs = input_moments(clip, task, recipe, run)
            of_outputs = output_moments(clip, task, recipe, run) if outputs else {}
            sides = [{key: m.to(clip.device) for key, m in side.items()} for side in (inputs, of_outputs)]
            each[encoder] = Moments(inputs=sides[0], outputs=sides[1])
        return each if run.is_main else None


def input_moments(model: Clip, task: Task, recipe: Recipe, run: Run) -> dict[str, Tensor]:
    """The input moments of a CLIP's weights on the retain set of a task (`clip_input_sums`); cached.

    All tasks on the same data share the sum over the whole retain set. The sum over the pairs that mention a
    forgotten name is subtracted from it. Worker ranks get an empty dictionary.
    """

    def total(pairs: Pairs) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = run.cached(
            "moments/inputs",
            clip_input_sums,
            model,
            pairs,
            batch_size=recipe.batch_size,
            _free={"run": run},
            _together=True,
        )
        return sums or {}

    sums = total(task.retain)
    return minus(sums, total(task.retain.select(task.mentions))) if task.mentions else sums


def output_moments(model: Clip, task: Task, recipe: Recipe, run: Run) -> dict[str, Tensor]:
    """The moments of the retain loss's gradients at the outputs of a CLIP's weights; cached.

    As `mean_gradients` does, it computes the whole retain set once for all tasks, and for each task the
    batches with pairs that mention a forgotten name twice more: with and without them.
    """
    batches = shuffled_batches(len(task.retain), recipe.batch_size, recipe.seed)
    mentions = set(task.mentions)
    touched = [batch for batch in batches if mentions.intersection(batch)]
    left = [some for batch in touched if (some := [i for i in batch if i not in mentions])]

    def total(batches: list[list[int]]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = run.cached(
            "moments/outputs",
            clip_output_sums,
            model,
            task.retain,
            batches,
            recipe.retain,
            _free={"run": run, "micro_batch_size": recipe.micro_batch_size},
            _together=True,
        )
        return sums or {}

    sums = total(batches)
    if not mentions:
        return sums
    changed = minus(sums, total(touched))
    return minus(changed, total(left), -1.0) if left else changed


def origin(model: Clip, task: Task, name: str, recipe: Recipe) -> dict[str, str]:
    """What gradients depend on: model, forget pairs, retain pairs, losses, batch size, seed, precision."""
    left_out = digest([str(i) for i in task.mentions])
    about = {
        "model": model.fingerprint,
        "forget_pairs": task.forget[name].fingerprint,
        "retain_pairs": digest([task.retain.fingerprint, left_out]),
        "losses": f"{recipe.forget_loss}/{recipe.retain_loss}",
        "batch_size": str(recipe.batch_size),
        "seed": str(recipe.seed),
        "precision": recipe.precision,
    }
    return about if recipe.retain_gradient else about | FORGET_ALONE


def norms(gradients: Gradients) -> dict[str, dict[str, float | None]]:
    """Parameter name -> {"forget": |g_f|, "retain": |g_r|}, Euclidean norms; |g_r| is None if not taken."""
    retain = gradients.retain
    return {
        name: {"forget": g.norm().item(), "retain": retain[name].norm().item() if retain else None}
        for name, g in gradients.forget.items()
    }


@dataclass(frozen=True)
class MeanGradientSettings:
    """The settings of a method that takes mean gradients of a CLIP in full precision.

    `python -m muwa.gradients export` can write the gradients of such a method.

    Args:
        forget_loss, retain_loss: "cosine" | "contrastive".
        batch_size: Pairs per batch. It sets the negatives of the contrastive loss.
        seed: Seed for the order of the pairs.
    """

    forget_loss: Loss
    retain_loss: Loss
    batch_size: Count
    seed: Seed

    @property
    def recipe(self) -> Recipe:
        """How the gradients are taken.

        Raises:
            ValueError: A setting is out of range.
        """
        return Recipe(self.forget_loss, self.retain_loss, self.batch_size, self.seed, "fp32")

    @property
    def gradients(self) -> ClipGradients:
        """The source of the gradients."""
        return ClipGradients()

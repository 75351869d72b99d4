"""SSD: dampen the weights that matter to the forgotten far more than to the retained (arXiv 2308.07707, AAAI 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.accumulation import Job, accumulate, leaving_out
from muwa.gradients.losses import by_name
from muwa.gradients.mean import Recipe, plan
from muwa.layer_search.steps import Log, silent
from muwa.methods._selection import (
    EditEvaluator,
    Tell,
    check_choice,
    check_clip,
    edit_of,
    forget_pairs,
    judge_each,
    nonzero,
    remembered,
    search_of,
    untold,
)
from muwa.methods._unet import check_above_zero
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Pairs, Split, Task
from muwa.types.edit import Edit

STRENGTHS = tuple(0.1 + i * (5 - 0.1) / 9 for i in range(10))  # the release's linspace(0.1, 5, 10)


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    alpha: float = 10.0,
    strengths: Sequence[float] | None = None,
    forget_loss: str = "cosine",
    retain_loss: str = "contrastive",
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
    """theta' = theta * min(1, c F_r / F_f) where F_f > alpha F_r; elsewhere theta. No training.

    F_f and F_r are diagonal Fisher importances of the forget and the retain pairs: `importance_sum` divided by the pairs.

    Args:
        task: What to forget; several names are forgotten together, their pairs joined.
        alpha: How many times as important to the forgotten a weight must be to be dampened at all.
        strengths: The c to try, in that order; None for the release's 10 from 0.1 to 5. A small one dampens more.
        forget_loss, retain_loss: "cosine" | "contrastive". The method wants the training loss of both, but in a batch of one
            name's pairs no pair is the right one: the contrastive forget loss then makes every weight important.
        batch_size: Pairs a batch: squares are of a batch's mean gradient, so it is part of the result.
        rule: Which strength becomes the edit: "best", of the feasible ones `whole.best_of`, none if there is none;
            "first", the first with forget top-1 accuracy 0, else the lowest. One sweep serves both.
        criterion, target: A strength is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        gradient_file: Not used; refused: squares cannot be had from a mean gradient.
        world: The processes that take gradients together; all but the first stop after that, with an empty edit.

    Returns:
        The edit; each name's move has c as its step.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP.

    Source: the paper's selection and dampening; alpha, the sweep of c and the bound 1 as in section 1.10 of SLUG's facts.
    The paper's importance is of single samples; its code squares the gradient of each batch and averages. So do we,
    weighted by samples, so that a short last batch does not count as a full one. Differs from the paper: F_r is of the
    retain pairs, not of all training pairs.
    """
    check_clip("ssd", model, gradient_file)
    check_choice(rule, criterion, target)
    recipe = Recipe(forget_loss, retain_loss, batch_size, seed)
    tried = STRENGTHS if strengths is None else tuple(strengths)
    if not tried:
        raise ValueError("method.strengths: got none, want at least one")
    check_above_zero({"alpha": alpha, **{f"strengths[{i}]": c for i, c in enumerate(tried)}})
    forget, n_forget = importances(model, forget_pairs(task), (), recipe.forget_loss, recipe, store=store, world=world,
                                   side="forget", progress=progress)  # fmt: skip
    retain, n_retain = importances(model, task.retain, task.mentions, recipe.retain_loss, recipe, store=store, world=world,
                                   side="retain", progress=progress)  # fmt: skip
    if not world.leads:
        return Edit({}, ())
    free = {"features": Features(model, store), "progress": progress}
    found = remembered(store, sweep, model, forget, retain, task.probe, alpha, tried, target, criterion, task=task, log=log,
                       free=free)  # fmt: skip
    search = search_of(task, rule, criterion, found["before"], found["trace"], "strengths")
    deltas = dampened(model.weights, forget, retain, alpha, tried[search.chosen]) if search.chosen is not None else {}
    return edit_of(task, search, deltas, n_forget + n_retain)


def importances(
    model: Clip, pairs: Pairs, without: tuple[int, ...], loss: str, recipe: Recipe, *, store: Store, world: Distributed, side: str,
    progress: bool,
) -> tuple[dict[str, Tensor], int]:  # fmt: skip
    """(parameter name -> importance, the pairs it is of), read back where it was seen before.

    The sum over all retain pairs is shared by every request on the same data; what leaving out the pairs `without` changes
    is one pass over the batches that hold them. Empty on all ranks but the first.

    Raises:
        ValueError: No pairs are left.
    """
    n = len(pairs) - len(set(without))
    if n <= 0:
        raise ValueError(f"task: no {side} pairs to take importances of")
    own: dict[str, Any] = {"loss": loss, "batch_size": recipe.batch_size, "seed": recipe.seed}
    own |= {"_free": {"progress": progress, "world": world}, "_world": world}
    total = store.get(f"importances/{side}", importance_sum, model, pairs, **own)
    less = store.get("importances/mentions", importance_sum, model, pairs, without=without, **own) if without else None
    if not world.leads:
        return {}, n
    if less is not None:
        total = {name: (f + less[name]).clamp_(min=0) for name, f in total.items()}  # below 0 by rounding only
    return {name: f / n for name, f in total.items()}, n


def importance_sum(
    model: Clip, pairs: Pairs, *, loss: str, batch_size: int, seed: int, without: tuple[int, ...] = (), world: Distributed = ALONE,
    progress: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """`sum_b n_b (grad of the batch-mean loss_b)^2`, element by element, over batches b of n_b pairs.

    Args:
        batch_size, seed: Of the batches (`muwa.gradients.mean.plan`).
        without: Give instead what leaving these pairs out of their batches adds to that sum.
        world: The processes that share each batch.

    Returns:
        Parameter name -> fp32 tensor of its shape, on the CPU.
    """
    batches = plan(len(pairs), batch_size, seed)
    jobs = leaving_out(batches, without)[0] if without else [Job(b, [(len(b), range(len(b)))]) for b in batches]
    total = {name: torch.zeros_like(w, dtype=torch.float32, device="cpu") for name, w in model.weights.items()}
    sizes = [len(job.pairs) for job in jobs]
    for job in track(jobs, f"{loss} importances", sum(sizes), show=progress, sizes=sizes):
        for weight, places in job.terms:
            some = pairs.select([job.pairs[place] for place in places])
            one = Job(range(len(some)), [(1.0, range(len(some)))])
            gradient = accumulate(model, some, [one], by_name(loss), loss, world=world)
            for name, g in gradient.items():
                total[name].addcmul_(g, g, value=weight)
    return total


def dampened(
    weights: Mapping[str, Tensor], forget: Mapping[str, Tensor], retain: Mapping[str, Tensor], alpha: float, c: float
) -> dict[str, Tensor]:
    """What dampening adds to the weights: `theta (min(1, c F_r / F_f) - 1)` where F_f > alpha F_r, else 0.

    >>> theta, f, r = torch.tensor([4.0, 4.0, -8.0]), torch.tensor([32.0, 32.0, 1.0]), torch.tensor([2.0, 8.0, 0.0])
    >>> dampened({"w": theta}, {"w": f}, {"w": r}, 10.0, 4.0)["w"].tolist()
    [-3.0, 0.0, 8.0]
    """
    out = {}
    for name, theta in weights.items():
        f, r = forget[name].to(theta.device), retain[name].to(theta.device)
        chosen = f > alpha * r
        factor = torch.where(
            chosen, (c * r / f.clamp(min=torch.finfo(f.dtype).tiny)).clamp(max=1.0), torch.ones_like(f)
        )
        out[name] = theta.float() * (factor - 1)
    return out


def sweep(
    model: Clip, forget: Mapping[str, Tensor], retain: Mapping[str, Tensor], probe: Split, alpha: float,
    strengths: Sequence[float], target: float, criterion: str, *, features: Features | None = None, tell: Tell = untold,
    progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Judge each strength: {"before": the unedited model's row, "trace": a row a strength, in their order}."""
    edit_evaluator = EditEvaluator(model, probe, features, target=target, criterion=criterion)
    tried = ((c, nonzero(dampened(model.weights, forget, retain, alpha, c))) for c in strengths)
    return judge_each(edit_evaluator, tried, len(strengths), "dampening", tell, progress)

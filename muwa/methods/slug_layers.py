"""SLUG's step on several layers at once, and on layers picked otherwise: what the paper's single layer is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muwa.cache.store import Store
from muwa.gradients.files import read_gradients
from muwa.gradients.mean import Recipe, gradients, origin
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.pareto import pareto
from muwa.layer_search.scores import layer_scores
from muwa.layer_search.steps import Log, add_edits, silent, step_deltas
from muwa.methods._selection import (
    Deltas,
    EditEvaluator,
    Tell,
    check_choice,
    check_clip,
    edit_of,
    keep,
    remembered,
    search_of,
    untold,
)
from muwa.methods._unet import check_above_zero, check_at_least, layers_at
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Split, Task
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, LayerScore, Part

PICKS = ("front", "importance", "alignment", "random", "all")


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    pick: str = "front",
    k: int | None = 3,
    granularity: str = "tensor",
    first_step: float = 0.1,
    max_evals: int = 10,
    rule: str = "best",
    target: float = 0.0,
    criterion: str = "top5",
    forget_loss: str = "cosine",
    retain_loss: str = "contrastive",
    batch_size: int = 32,
    seed: int = 0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """One step along the forget gradients of `k` layers together: theta_l + s (|theta_l| / |g_l|) g_l, s found by bisection.

    Args:
        model: A CLIP.
        task: What to forget; each name gets its own layers and step on the original model, and the edits are added.
        pick: Which layers: "front", the most important on the towers' Pareto fronts; "importance", the most important of
            all; "alignment", the least aligned of all; "random", by `seed`; "all".
        k: So many of them; None takes all that `pick` orders.
        first_step, max_evals: Of the bisection of s, a share of each layer's own norm.
        rule: "best": of the feasible steps `whole.best_of`; "first": the first with forget/top1 0, else the lowest.
        target, criterion: A step is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        granularity, forget_loss, retain_loss, batch_size, seed, gradient_file, world: As in `muwa.methods.slug`.

    Raises:
        ValueError: A setting is out of range, before any compute.

    Source: SLUG (arXiv 2407.11867), table 4: importance alone, alignment alone, a random layer, all front layers, all
    layers. Differs: layers share one relative step; each variant's step is searched for as SLUG's own is.
    """
    check_clip("slug_layers", model)
    if pick not in PICKS:
        raise ValueError(f"method.pick: got {pick!r}, want one of {', '.join(PICKS)}")
    check_choice(rule, criterion, target)
    check_above_zero({"first_step": first_step})
    check_at_least({"max_evals": (max_evals, 1), "k": (1 if k is None else k, 1)})
    recipe, layers = Recipe(forget_loss, retain_loss, batch_size, seed), layers_at(model, granularity)
    edits, samples, retained = [], 0, 0
    for name in task.names:
        if gradient_file is None:
            own = gradients(model, task, name, recipe, store=store, world=world, progress=progress)
        else:
            own = read_gradients(gradient_file, origin(model, task, name, recipe)) if world.leads else None
        if own is None:
            continue
        scores = layer_scores(model.weights, own.forget, own.retain, layers)
        picked = apart(picks(scores, pick, seed), layers)[:k]
        chosen = [layer for layer in layers if layer.name in picked]
        log("scores", {"concept": name, "scores": scores, "front": tuple(picked)})
        only = task.only(name)
        free = {"features": Features(model, store), "progress": progress}
        found = remembered(
            store, joint_search, model, own, chosen, only.probe, first_step, max_evals, target, criterion, task=only,
            log=log, free=free,
        )  # fmt: skip
        search = search_of(only, rule, criterion, found["before"], found["trace"], "steps", granularity, scores,
                           tuple(picked))  # fmt: skip
        deltas = found["kept"][str(search.chosen)] if search.chosen is not None else {}
        edits.append(edit_of(only, search, deltas, 0))
        samples, retained = samples + own.n_forget, own.n_retain
    total = add_edits(edits)
    return Edit(total.deltas, total.moves, total.searches, samples + retained)


def picks(scores: Mapping[str, LayerScore], pick: str, seed: int) -> list[str]:
    """Names of layers in the order in which `pick` takes them; those without a forget gradient are in none."""
    moving = {name: row for name, row in scores.items() if row.forget_norm > 0}
    important = sorted(moving, key=lambda name: -moving[name].importance)
    if pick == "front":
        front = {name for tower in ("vision", "text") for name in pareto(scores, tower)}
        ordered = [name for name in important if name in front]
    elif pick == "alignment":
        ordered = sorted(moving, key=lambda name: moving[name].alignment)
    elif pick == "random":
        ordered = [list(moving)[i] for i in np.random.default_rng(seed).permutation(len(moving))]
    else:
        ordered = important
    return ordered


def apart(names: Sequence[str], layers: Sequence[Layer]) -> list[str]:
    """`names` without those that would move weights of an earlier one again (q, k and v of a Hugging Face model)."""
    edited = {layer.name: layer.edited for layer in layers}
    first: dict[tuple[Part, ...], str] = {}
    for name in names:
        first.setdefault(edited[name], name)
    return list(first.values())


def joint_search(
    model: Clip, found: Gradients, layers: Sequence[Layer], probe: Split, first_step: float, max_evals: int, target: float,
    criterion: str, *, features: Features | None = None, tell: Tell = untold, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Bisect the relative step of `layers` together.

    Returns:
        {"before": the unedited model's row, "trace": a row a step, "kept": str(index) -> deltas of the first
        and of the best}.
    """
    edit_evaluator = EditEvaluator(model, probe, features, target=target, criterion=criterion)
    towers = {layer.tower for layer in layers}
    about = {"layer": " + ".join(layer.name for layer in layers), "tower": towers.pop() if len(towers) == 1 else "both"}
    trace: list[Evaluation] = []
    kept: dict[str, Deltas] = {}
    steps = bisection(first_step, max_evals)
    step: float | None = next(steps)
    for _ in track(range(max_evals), f"searching {len(layers)} layers together", max_evals, show=progress):
        assert step is not None
        deltas = joint_deltas(model, found, layers, step)
        row = edit_evaluator(deltas, len(trace) + 1, step, **about)
        trace.append(row)
        tell(row)
        keep(kept, trace, deltas, edit_evaluator.counts)
        step = next_step(steps, row.feasible)
    return {"before": edit_evaluator.before(), "trace": trace, "kept": kept}


def joint_deltas(model: Clip, found: Gradients, layers: Sequence[Layer], step: float) -> Deltas:
    """Parameter name -> fp32 delta: each layer moved along its forget gradient by `step` of its own norm."""
    deltas: Deltas = {}
    for layer in layers:
        sizes = [
            sum(part.of(of).double().square().sum().item() for part in layer.scored) ** 0.5
            for of in (model.weights, found.forget)
        ]
        for name, delta in step_deltas(model, found, layer, step * sizes[0] / sizes[1]).items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
    return deltas

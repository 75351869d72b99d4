"""Null space: take a name's text directions out of the last visual projection, in closed form (arXiv 2512.14137)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.layer_search.steps import Log, silent
from muwa.methods._prompts import prompts_of
from muwa.methods._selection import (
    Deltas,
    EditEvaluator,
    Tell,
    check_choice,
    check_clip,
    edit_of,
    judge_each,
    remembered,
    search_of,
    untold,
)
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Split, Task
from muwa.types.edit import Edit

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
RIGHT = ("visual.proj",)  # (width, d), of x W
LEFT = ("visual_projection.weight", "visual.head.proj.weight", "visual.attnpool.c_proj.weight")  # (d, width), of W x


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    templates: Sequence[str] | None = None,
    rank: int | None = None,
    strengths: Sequence[float] = STRENGTHS,
    rule: str = "best",
    criterion: str = "top5",
    target: float = 0.0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """W' = W (I - s U U^T) for the projection W that gives picture embeddings x W; U (d, r) spans the names' prompts.

    At s = 1 and full rank the cosine of any picture with each of those prompts is 0. Only the probe's pictures are seen.

    Args:
        task: What to forget; of several names one U spans all their prompts.
        templates: With {} for the name; None for those that the probe pictures are judged with and the task's own prompt.
        rank: Directions, by falling singular value of the prompts' embeddings; None for all of them.
        strengths: The s to try, in that order, in (0, 1].
        rule: Which strength becomes the edit: "best", of the feasible ones `whole.best_of`, none if there is none;
            "first", the first with forget top-1 accuracy 0, else the lowest. One sweep serves both.
        criterion, target: A strength is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        gradient_file: Not used; refused: no gradient is taken.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit, of the projection (and its bias, where it has one); each name's move has s as its step; `samples` is 0.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP or has no such projection.

    Source: what could be read is the paper's abstract: an orthonormal basis of the target's text embeddings, projected out
    of the final projection layer; a partial projection balances forgetting and keeping. Chosen here: which prompts,
    singular vectors as the basis, s by rule on the probe pictures. What it does with the retained classes' texts is not
    here.
    """
    check_clip("nullspace", model, gradient_file)
    check_choice(rule, criterion, target)
    own = projection(model)
    if templates is not None and (not templates or not all("{}" in text for text in templates)):
        raise ValueError(f"method.templates: got {list(templates)}, want texts with {{}} where the name stands")
    texts = tuple(dict.fromkeys(text for name in task.names for text in _texts(task, name, templates)))
    if not strengths or not all(0 < s <= 1 for s in strengths):
        raise ValueError(f"method.strengths: got {list(strengths)}, want some in (0, 1]")
    if rank is not None and not 1 <= rank <= len(texts):
        raise ValueError(f"method.rank: got {rank}, want 1 to {len(texts)} (prompts), or null for all")
    if not world.leads:
        return Edit({}, ())
    basis = directions(model, texts, rank)
    tried = tuple(strengths)
    free = {"features": Features(model, store), "progress": progress}
    found = remembered(store, sweep, model, basis, task.probe, tried, target, criterion, task=task, log=log, free=free)
    search = search_of(task, rule, criterion, found["before"], found["trace"], "strengths", "tensor")
    deltas = projected(model.weights, own, basis, tried[search.chosen]) if search.chosen is not None else {}
    return edit_of(task, search, deltas, 0)


def _texts(task: Task, name: str, templates: Sequence[str] | None) -> list[str]:
    """The texts that ask for a name: by `templates`, or by those of the probe pictures and the task's own prompts."""
    if templates is not None:
        return [template.format(name) for template in templates]
    return [*(template.format(name) for template in task.probe.forget.classes.templates), *prompts_of(task, name)[1:]]


def projection(model: Clip) -> str:
    """The weight that maps the vision tower's last hidden state into the space shared with texts.

    Raises:
        ValueError: There is none that is known.
    """
    for name in (*RIGHT, *LEFT):
        if name in model.weights:
            return name
    raise ValueError(
        f"method=nullspace: {model.source} has none of {', '.join((*RIGHT, *LEFT))}: no projection to edit"
    )


@torch.no_grad()
def directions(model: Clip, prompts: Sequence[str], rank: int | None) -> Tensor:
    """(d, r) fp64 on the CPU: orthonormal, the first right singular vectors of the prompts' embeddings, at most `rank`.

    Directions with less than 1e-4 of the largest singular value are none (prompts that are told alike).
    """
    embedded = model.encode("text", model.tokenize(list(prompts))).double().cpu()
    _, sizes, rows = torch.linalg.svd(embedded, full_matrices=False)
    count = int((sizes > 1e-4 * sizes[0]).sum())
    return rows[: min(count, rank or count)].T.contiguous()


def projected(weights: Mapping[str, Tensor], name: str, basis: Tensor, strength: float) -> Deltas:
    """What projecting adds: `-s W U U^T` for (width, d) weights, `-s U U^T W` for (d, width) ones and their bias.

    >>> u = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    >>> projected({"visual.proj": torch.tensor([[3.0, 4.0]])}, "visual.proj", u, 0.5)["visual.proj"].tolist()
    [[-1.5, -0.0]]
    """
    span = basis @ basis.T
    theta = weights[name].double().cpu()
    deltas = {name: theta @ span if name in RIGHT else span @ theta}
    bias = name.removesuffix("weight") + "bias"
    if name in LEFT and bias in weights:
        deltas[bias] = span @ weights[bias].double().cpu()
    return {key: (-strength * delta).float().to(weights[key].device) for key, delta in deltas.items()}


def sweep(
    model: Clip, basis: Tensor, probe: Split, strengths: Sequence[float], target: float, criterion: str, *,
    features: Features | None = None, tell: Tell = untold, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Judge each strength: {"before": the unedited model's row, "trace": a row a strength, in their order}."""
    edit_evaluator, name = EditEvaluator(model, probe, features, target=target, criterion=criterion), projection(model)
    tried = ((s, projected(model.weights, name, basis, s)) for s in strengths)
    return judge_each(edit_evaluator, tried, len(strengths), "projecting", tell, progress, layer=name, tower="vision")

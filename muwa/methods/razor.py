"""RAZOR: edit several layers and heads along one fused gradient, growing their set round by round (arXiv 2603.14819)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.accumulation import Job, accumulate
from muwa.gradients.mean import Recipe, gradients, plan
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.scores import layer_scores
from muwa.layer_search.steps import Log, kept, silent
from muwa.methods._selection import (
    Deltas,
    EditEvaluator,
    Tell,
    check_choice,
    check_clip,
    edit_of,
    keep,
    remembered,
    retain_pairs,
    search_of,
    untold,
)
from muwa.methods._unet import check_above_zero, check_at_least, layers_at
from muwa.models.clip.embeddings import Features, pixel_batches
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Pairs, Task
from muwa.types.edit import Edit
from muwa.types.search import Evaluation, Layer


@dataclass(frozen=True)
class Cut:
    """How RAZOR selects, weighs and steps: see `unlearn`."""

    granularity: str
    alpha: float
    threshold: float
    forget_weight: float
    mismatch_weight: float
    rounds: int
    first_step: float
    max_evals: int


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    granularity: str = "head",
    alpha: float = 0.5,
    threshold: float = 0.1,
    forget_weight: float = 1.0,
    mismatch_weight: float = 1.0,
    rounds: int = 6,
    first_step: float = 0.02,
    max_evals: int = 10,
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
    """Step along `f g_f - g_r - m g_m` on the layers and heads that score best; add one and step again until it forgets.

        score(l) = |g_f| / |theta| (1 - cos(g_f, g_r))^alpha

    g_f, g_r, g_m are gradients of the forget loss, the retain loss and the mismatch (`drift`), at the weights of the round.

    Args:
        task: What to forget; several names are forgotten together, g_f the mean over all their pairs.
        granularity: What is scored: "head", attention heads and all other weight tensors; or as of `muwa.models.clip.layers`.
        alpha: Weight of the direction in the score, in [0, 1].
        threshold: The first round takes all that score at least this share of the best score.
        forget_weight, mismatch_weight: f and m.
        rounds: At most; each after the first adds the best-scoring layer or head that is not yet in the set.
        first_step, max_evals: Of a round's bisection (`muwa.layer_search.bisection.bisection`); a step is the share of its own
            norm that each layer moves by.
        forget_loss, retain_loss: "cosine" | "contrastive".
        batch_size: Pairs a batch; the negatives of the contrastive loss.
        rule: Which step becomes the edit: "best", of the feasible ones `whole.best_of`, none if there is none;
            "first", the first with forget top-1 accuracy 0, else the lowest. One search serves both.
        criterion, target: A step is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        gradient_file: Not used; refused: later rounds take their own gradients.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit; each name's move has the relative step as its step, and the round as its layer.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP.

    Source: score, three-part loss, binary-searched step and at most 6 rounds as two public notes on the paper give them;
    its own text and code could not be read. Ours, where they say nothing: tau is relative to the best score; each gradient
    is of length 1 in each layer, so that weights mean the same everywhere (the paper weighs raw gradients, by values that
    we do not know); one relative step for all layers of a round, where the paper searches one a layer; what a round goes on
    from (`_grow`). In round 1 the mismatch has no gradient: nothing has drifted yet.
    """
    check_clip("razor", model, gradient_file)
    check_choice(rule, criterion, target)
    recipe = Recipe(forget_loss, retain_loss, batch_size, seed)
    check_at_least({"rounds": (rounds, 1), "max_evals": (max_evals, 1), "mismatch_weight": (mismatch_weight, 0)})
    check_above_zero({"first_step": first_step, "forget_weight": forget_weight})
    for key, share in (("alpha", alpha), ("threshold", threshold)):
        if not 0 <= share <= 1:
            raise ValueError(f"method.{key}: got {share}, want a number in [0, 1]")
    layers_at(model, granularity)  # an unknown one is an error here
    cut = Cut(granularity, alpha, threshold, forget_weight, mismatch_weight, rounds, first_step, max_evals)
    if not world.leads:
        return Edit({}, ())
    free = {"features": Features(model, store), "store": store, "progress": progress}
    found = remembered(store, search, model, task, cut, recipe, target, criterion, task=task, log=log, free=free)
    chosen = search_of(task, rule, criterion, found["before"], found["trace"], "steps", granularity)
    deltas = found["kept"][str(chosen.chosen)] if chosen.chosen is not None else {}
    return edit_of(task, chosen, deltas, found["samples"])


def score(importance: float, cosine: float, alpha: float) -> float:
    """importance (1 - cosine)^alpha: high where forgetting pulls hard and does not pull where retaining does.

    `cosine` is signed: at 1 what forgets (uphill) is what harms the retained most; at -1 one step serves both.

    >>> score(2.0, -1.0, 0.5) == 2 * 2**0.5, score(2.0, 1.0, 0.5)
    (True, 0.0)
    """
    return importance * (1 - cosine) ** alpha


def search(
    model: Clip, task: Task, cut: Cut, recipe: Recipe, target: float, criterion: str, *, features: Features | None = None,
    store: Store, tell: Tell = untold, progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The rounds: {"before", "trace": a row a step, "kept": as of `descent.tune`, "samples"}."""
    edit_evaluator = EditEvaluator(model, task.probe, features, target=target, criterion=criterion)
    candidates = {layer.name: layer for layer in model.layers(cut.granularity)}
    trace: list[Evaluation] = []
    kept_deltas: dict[str, Deltas] = {}
    taken: list[str] = []
    deltas: Deltas = {}
    samples = 0
    for turn in range(cut.rounds):
        now = model.edited(Edit(deltas, ()))
        forget, retain, n = both(now, task, recipe, store, progress)
        samples += n
        scores = layer_scores(now.weights, forget, retain, list(candidates.values()))
        rank = {name: score(s.importance, s.cosine, cut.alpha) for name, s in scores.items()}
        if not taken:
            taken = [name for name, value in rank.items() if value >= cut.threshold * max(rank.values())]
        else:
            left = [name for name in rank if name not in taken]
            taken += [max(left, key=lambda name: rank[name])] if left else []
        mismatch = drift(model, now, retain_pairs(task), recipe, progress) if turn and cut.mismatch_weight else {}
        samples += len(retain_pairs(task)) if mismatch else 0
        direction = fused([candidates[name] for name in taken], now.weights, forget, retain, mismatch, cut)
        where = f"round {turn + 1}, {len(taken)} layers and heads"
        tried = _grow(edit_evaluator, deltas, direction, cut, where, trace, kept_deltas, tell)
        if any(row.feasible for row, _ in tried):
            break
        deltas = min(tried, key=lambda one: (getattr(one[0], f"forget_{criterion}"), -kept(one[0])))[1]
    return {"before": edit_evaluator.before(), "trace": trace, "kept": kept_deltas, "samples": samples}


def both(
    model: Clip, task: Task, recipe: Recipe, store: Store, progress: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """(mean forget gradient over all names' pairs, mean retain gradient, pairs they are of)."""
    forget: dict[str, Tensor] = {}
    retain: Mapping[str, Tensor] = {}
    n_forget = n_retain = 0
    for name in task.names:
        found = gradients(model, task, name, recipe, store=store, progress=progress)
        assert found is not None  # this process is alone
        for key, g in found.forget.items():
            forget[key] = forget[key] + found.n_forget * g if key in forget else found.n_forget * g
        retain, n_forget, n_retain = found.retain, n_forget + found.n_forget, found.n_retain
    return {key: g / n_forget for key, g in forget.items()}, dict(retain), n_forget + n_retain


def drift(model: Clip, now: Clip, pairs: Pairs, recipe: Recipe, progress: bool = False) -> dict[str, Tensor]:
    """The mean gradient, at the weights of `now`, of the mismatch: `mean_ij (cos(v_i, t_j) - cos0(v_i, t_j))^2` of a batch,
    cos0 by the unedited `model`. Zero where nothing has changed.

    Source: "similarity drift" of the notes on the paper; the square and the whole matrix are ours.
    """
    batches = plan(len(pairs), recipe.batch_size, recipe.seed)
    total: dict[str, Tensor] = {}
    sizes = [len(batch) for batch in batches]
    for batch in track(batches, "mismatch gradient", sum(sizes), show=progress, sizes=sizes):
        some = pairs.select(batch)
        with torch.no_grad():
            pixels = next(pixel_batches(model, some.images, [len(some)]))
            images = model.encode("vision", pixels)
            before = images @ model.encode("text", model.tokenize(list(some.captions))).T

        def loss(images: Tensor, texts: Tensor, scale: Tensor, before: Tensor = before) -> Tensor:
            return (images @ texts.T - before).square().mean()

        job = Job(range(len(some)), [(len(some) / len(pairs), range(len(some)))])
        for name, g in accumulate(now, some, [job], loss, "mismatch").items():
            total[name] = total[name] + g if name in total else g
    return total


def fused(
    layers: Sequence[Layer], weights: Mapping[str, Tensor], forget: Mapping[str, Tensor], retain: Mapping[str, Tensor],
    mismatch: Mapping[str, Tensor], cut: Cut,
) -> Deltas:  # fmt: skip
    """The direction of a round: in each layer `f g_f - g_r - m g_m`, each gradient made of length 1 there, then all of it of
    the layer's own norm, so that a step of 0.1 moves each layer by a tenth of itself. Zero elsewhere.

    Uphill of the forget loss, downhill of the other two.
    """
    out: Deltas = {}
    for layer in layers:
        parts = layer.edited
        for part in parts:
            out.setdefault(part.name, torch.zeros_like(weights[part.name], dtype=torch.float32))
        terms = ((cut.forget_weight, forget), (-1.0, retain), (-cut.mismatch_weight, mismatch))
        weighed = [(weight / size, of) for weight, of in terms if of and (size := _norm([p.of(of) for p in parts]))]
        mixed = [sum((w * p.of(of) for w, of in weighed), torch.zeros_like(p.of(forget))) for p in parts]
        length = _norm(mixed)
        own = _norm([p.of(weights) for p in parts])
        for part, some in zip(parts, mixed, strict=True):
            part.of(out).copy_(some * (own / length if length else 0.0))
    return out


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


def _grow(
    edit_evaluator: EditEvaluator, base: Deltas, direction: Deltas, cut: Cut, where: str, trace: list[Evaluation], found: dict[str, Deltas],
    tell: Tell,
) -> list[tuple[Evaluation, Deltas]]:  # fmt: skip
    """A round's bisection from `base`: (row, deltas) of each step.

    Where none was feasible the next round goes on from the step that forgets most, and of those the one that keeps most.
    """
    steps = bisection(cut.first_step, cut.max_evals)
    tried: list[tuple[Evaluation, Deltas]] = []
    step: float | None = next(steps)
    while step is not None:
        deltas = {name: step * d + base.get(name, torch.zeros(())) for name, d in direction.items()}
        deltas |= {name: d for name, d in base.items() if name not in deltas}
        trace.append(edit_evaluator(deltas, len(tried) + 1, step, layer=where))
        keep(found, trace, deltas, edit_evaluator.counts)
        tell(trace[-1])
        tried.append((trace[-1], deltas))
        step = next_step(steps, trace[-1].feasible)
    return tried

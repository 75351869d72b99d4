"""SLUG in small steps: the forget gradient of one layer, taken anew after each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.mean import gradient_sum
from muwa.layer_search.bisection import pareto_bisect
from muwa.layer_search.steps import Log, add_edits, silent
from muwa.methods import slug
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
from muwa.methods._unet import check_above_zero, check_at_least
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Pairs, Split, Task
from muwa.types.edit import Edit
from muwa.types.search import Evaluation, Layer, Search


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    layer_search: Callable[..., Search] = pareto_bisect,
    step: float = 0.02,
    rounds: int = 20,
    patience: int = 3,
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
    """The layer that SLUG's search chooses, moved by `step` of its norm at a time along the forget gradient where it is now.

    Args:
        model: A CLIP.
        task: What to forget; each name by itself, on the original model, and the edits are added.
        layer_search: SLUG's, which chooses the layer (`muwa.methods.slug`).
        step: Length of a round's step, as a share of the layer's original norm.
        rounds: At most; `patience` rounds after the first feasible one it ends.
        rule: "best": of the feasible rounds `whole.best_of`; "first": the first with forget/top1 0, else the lowest.
        target, criterion: A round is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        forget_loss, retain_loss, batch_size, seed, gradient_file, world: As in `muwa.methods.slug`.

    Returns:
        The edit; without deltas for names whose search chose no layer.

    Raises:
        ValueError: A setting is out of range, before any compute.

    Source: the reviewers' question to SLUG (section 3 of the facts): not reported there.
    """
    check_clip("slug_iterative", model)
    check_choice(rule, criterion, target)
    check_above_zero({"step": step})
    check_at_least({"rounds": (rounds, 1), "patience": (patience, 0)})
    plain = slug.unlearn(
        model, task, store=store, layer_search=layer_search, forget_loss=forget_loss, retain_loss=retain_loss,
        batch_size=batch_size, seed=seed, log=log, gradient_file=gradient_file, world=world, progress=progress,
    )  # fmt: skip
    edits, samples = [], plain.samples
    for found in plain.searches:
        if found.chosen is None:
            edits.append(Edit({}, (), (found,)))
            continue
        name, row = found.concept, found.trace[found.chosen]
        layer = next(layer for layer in model.layers(found.granularity) if layer.name == row.layer)
        only = task.only(name)
        free = {"features": Features(model, store), "progress": progress}
        trod = remembered(
            store, walk, model, task.forget[name], layer, only.probe, step, rounds, patience, target, criterion,
            forget_loss, batch_size, seed, task=only, log=log, free=free,
        )  # fmt: skip
        search = search_of(only, rule, criterion, trod["before"], trod["trace"], "rounds", found.granularity,
                           found.scores, found.front)  # fmt: skip
        deltas = trod["kept"][str(search.chosen)] if search.chosen is not None else {}
        edits.append(edit_of(only, search, deltas, 0))
        samples += len(task.forget[name]) * len(trod["trace"])
    return replace(add_edits(edits), samples=samples)


def walk(
    model: Clip, pairs: Pairs, layer: Layer, probe: Split, step: float, rounds: int, patience: int, target: float,
    criterion: str, loss: str, batch_size: int, seed: int, *, features: Features | None = None, tell: Tell = untold,
    progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Rounds of gradient and step on one layer, judged after each.

    Returns:
        {"before": the unedited model's row, "trace": a row a round, "kept": str(index) -> deltas of the first
        and of the best}.
    """
    edit_evaluator = EditEvaluator(model, probe, features, target=target, criterion=criterion)
    length = step * _size(layer, model.weights)
    deltas: Deltas = {}
    trace: list[Evaluation] = []
    kept: dict[str, Deltas] = {}
    forgot: int | None = None
    for _ in track(range(rounds), "stepping", rounds, show=progress):
        now = model.edited(Edit(deltas, ()))
        gradient = gradient_sum(now, pairs, loss=loss, batch_size=batch_size, seed=seed)["sum"]
        assert isinstance(gradient, dict)
        size = _size(layer, gradient)
        if size == 0:
            break
        deltas = {name: delta.clone() for name, delta in deltas.items()}
        for part in layer.edited:
            delta = deltas.setdefault(part.name, gradient[part.name].new_zeros(gradient[part.name].shape))
            part.of({part.name: delta}).add_(part.of(gradient), alpha=length / size)
        row = edit_evaluator(deltas, len(trace) + 1, step * (len(trace) + 1), layer=layer.name, tower=layer.tower)
        trace.append(row)
        tell(row)
        keep(kept, trace, deltas, edit_evaluator.counts)
        forgot = len(trace) if forgot is None and row.feasible else forgot
        if forgot is not None and len(trace) - forgot >= patience:
            break
    return {"before": edit_evaluator.before(), "trace": trace, "kept": kept}


def _size(layer: Layer, of: Mapping[str, Tensor]) -> float:
    return sum(part.of(of).double().square().sum().item() for part in layer.scored) ** 0.5

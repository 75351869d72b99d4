"""SLUG: forget by one step along one layer's forget gradient (arXiv 2407.11867, ICML 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from muwa.cache import Store
from muwa.encode import Features
from muwa.gradients import Recipe, gradients, origin, read_gradients
from muwa.layer_search.bisect import pareto_bisect
from muwa.layer_search.common import Log, add_edits, edit_of, silent
from muwa.layer_search.settings import check_search
from muwa.models.clip import Clip
from muwa.types import Edit, Gradients, Search, Task
from muwa.world import ALONE, World


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    layer_search: Callable[..., Search] = pareto_bisect,
    forget_loss: str = "cosine",
    retain_loss: str = "contrastive",
    batch_size: int = 32,
    seed: int = 0,
    precision: str = "fp32",
    micro_batch_size: int | None = None,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: World = ALONE,
    progress: bool = False,
) -> Edit:
    """gradients -> scores -> layer search -> edit; gradients and searches are read back if their inputs were seen before.

    Args:
        task: What to forget. Of several names, each gets its own gradient on the original model, its own layer and
            its own step; the edits are added.
        layer_search: Bound settings of a search; scores are computed inside it.
        forget_loss, retain_loss: "cosine" | "contrastive".
        batch_size: Pairs a batch; the negatives of the contrastive loss.
        seed: Of the order of pairs.
        precision: Of the gradients' forward pass: "fp32" | "bf16"; they are summed in fp32.
        micro_batch_size: Pairs encoded at once where a whole batch does not fit; the gradient stays that of the batch.
        gradient_file: Gradients of `python -m muwa.gradients export`, checked against this run, in place of computing.
        world: The processes that take gradients together; all but the first stop after that, with an empty edit.

    Returns:
        The edit; without deltas where the search found no feasible step.

    Raises:
        ValueError: A setting is out of range, before any compute; or the gradient file was computed from something else.
    """
    features = Features(model, store)
    recipe = Recipe(forget_loss, retain_loss, batch_size, seed, precision)
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"method.micro_batch_size: got {micro_batch_size}, want at least 1, or null for whole batches")
    check_search(model, layer_search)
    edits = []
    for name in task.names:
        if gradient_file is None:
            found = gradients(
                model,
                task,
                name,
                recipe,
                store=store,
                micro_batch_size=micro_batch_size,
                world=world,
                progress=progress,
            )
        else:
            found = read_gradients(gradient_file, origin(model, task, name, recipe)) if world.leads else None
        if found is None:
            continue
        log("gradients", {"concept": name, "norms": norms(found), "n": [found.n_forget, found.n_retain]})
        probe = task.only(name).probe
        told: list[str] = []

        def tell(event: str, row: dict[str, object], told: list[str] = told) -> None:
            told.append(event)
            log(event, row)

        free = {"features": features, "log": tell, "progress": progress}
        search = store.get("search", layer_search, model, found, probe, name, _free=free)
        if not told:
            replay(search, log)
        edits.append(edit_of(search, model, found))
    return add_edits(edits)


def replay(search: Search, log: Log) -> None:
    """Tell the loggers of a search that was read back from the cache what a live one would have told them."""
    log("scores", {"concept": search.concept, "scores": search.scores, "front": search.front})
    for row in search.trace:
        log("evaluation", {"concept": search.concept, **asdict(row)})


def norms(found: Gradients) -> dict[str, dict[str, float]]:
    """Parameter name -> {"forget": |g_f|, "retain": |g_r|}."""
    return {
        name: {"forget": g.norm().item(), "retain": found.retain[name].norm().item()}
        for name, g in found.forget.items()
    }

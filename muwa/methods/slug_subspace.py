"""SLUG along a forget gradient that leaves alone the input directions which the retained data uses most: muwa's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from muwa.cache.store import Store
from muwa.gradients.subspaces import KINDS, second_moments, without
from muwa.layer_search.bisection import pareto_bisect
from muwa.layer_search.steps import Log, silent
from muwa.methods import slug
from muwa.models.clip.model import Clip
from muwa.models.diffusion.model import Diffusion
from muwa.models.vlm.model import Vlm
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Pairs, Task
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients
from muwa.types.search import Search


def unlearn(
    model: Clip | Diffusion | Vlm,
    task: Task,
    *,
    store: Store,
    layer_search: Callable[..., Search] = pareto_bisect,
    subspace: str = "activations",
    energy: float = 0.95,
    rank: int | None = None,
    forget_loss: str = "cosine",
    retain_loss: str = "contrastive",
    batch_size: int = 32,
    seed: int = 0,
    precision: str = "fp32",
    gradient: str = "clip",
    micro_batch_size: int | None = None,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """`muwa.methods.slug` with G_f (I - V V^T) in place of G_f, for every weight matrix; V (inputs, k) spans what is kept.

    Scores, front and search are those of SLUG, on the refined gradient.

    Args:
        subspace: What V is of: "gradient", the mean retain gradient; "fisher", the batches' retain gradients; "activations",
            the inputs that the weight meets on retained pairs (`muwa.gradients.subspaces`).
        energy: k is the least number of directions that hold this share of the second moment's trace, in (0, 1).
        rank: k itself, the same for all weights; None goes by `energy`.
        model, task, layer_search, forget_loss, retain_loss, batch_size, seed, precision, gradient, micro_batch_size,
            gradient_file, world: As in `muwa.methods.slug`.

    Raises:
        ValueError: A setting is out of range, before any compute.
    """
    if subspace not in KINDS:
        raise ValueError(f"method.subspace: got {subspace!r}, want one of {', '.join(KINDS)}")
    if not 0 < energy < 1:
        raise ValueError(f"method.energy: got {energy}, want a share above 0 and below 1")
    if rank is not None and rank < 1:
        raise ValueError(f"method.rank: got {rank}, want at least 1, or null to go by energy")
    moments: dict[str, Any] = {"kind": subspace, "loss": retain_loss, "batch_size": batch_size, "seed": seed}

    def used(clip: Clip, pairs: Pairs) -> dict[str, Tensor]:
        return store.get("subspace", second_moments, clip, pairs, **moments, _free={"progress": progress})

    def refine(clip: Clip, task: Task, found: Gradients) -> Gradients:
        mentions, of = list(task.mentions), None
        if subspace == "fisher":  # batches with a pair less are other batches
            of = used(clip, task.retain.select([i for i in range(len(task.retain)) if i not in set(mentions)]))
        elif subspace == "activations":  # a sum over pairs, whose total all requests share
            of = used(clip, task.retain)
            less = used(clip, task.retain.select(mentions)) if mentions else {}
            of = {name: moment - less[name] if less else moment for name, moment in of.items()}
        return without(found, of, kind=subspace, rank=rank, energy=energy)

    edit = slug.unlearn(
        model, task, store=store, layer_search=layer_search, forget_loss=forget_loss, retain_loss=retain_loss,
        batch_size=batch_size, seed=seed, precision=precision, gradient=gradient, micro_batch_size=micro_batch_size,
        refine=refine, log=log, gradient_file=gradient_file, world=world, progress=progress,
    )  # fmt: skip
    again = len(task.retain) - len(task.mentions) if subspace == "fisher" else 0  # one more pass with gradients
    return replace(edit, samples=edit.samples + again)

"""SLUG: forget by one step along one layer's forget gradient (arXiv 2407.11867, ICML 2025)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from muwa.cache.store import Store
from muwa.gradients.answers import answer_gradients
from muwa.gradients.files import read_gradients
from muwa.gradients.mean import Recipe, gradients, origin
from muwa.layer_search import candidates
from muwa.layer_search.bisection import pareto_bisect
from muwa.layer_search.checks import check_search
from muwa.layer_search.steps import Log, add_edits, edit_of, silent
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.models.diffusion.model import Diffusion
from muwa.models.vlm.model import Vlm
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Task
from muwa.types.edit import Edit
from muwa.types.gradients import Gradients
from muwa.types.search import Search

Refine = Callable[[Clip, Task, Gradients], Gradients]


def unlearn(
    model: Clip | Diffusion | Vlm,
    task: Task,
    *,
    store: Store,
    layer_search: Callable[..., Search] = pareto_bisect,
    forget_loss: str = "cosine",
    retain_loss: str = "contrastive",
    batch_size: int = 32,
    seed: int = 0,
    precision: str = "fp32",
    gradient: str = "clip",
    micro_batch_size: int | None = None,
    refine: Refine | None = None,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """gradients -> scores -> layer search -> edit; gradients and searches are read back if their inputs were seen before.

    Args:
        task: What to forget. Of several names, each gets its own gradient on the original model, its own layer and
            its own step; the edits are added.
        model: A CLIP; or a text-to-image pipeline, whose text encoders are edited, or a vision-language model, whose vision
            tower is: gradients are taken on their CLIPs.
        layer_search: Bound settings of a search; scores are computed inside it. Of a pipeline: one that draws; of a
            vision-language model: one that asks.
        forget_loss, retain_loss: "cosine" | "contrastive".
        batch_size: Pairs a batch; the negatives of the contrastive loss.
        seed: Of the order of pairs.
        precision: Of the gradients' forward pass: "fp32" | "bf16"; they are summed in fp32.
        gradient: "clip", as the paper; of a vision-language model also "answer": of what it answers itself
            (`muwa.gradients.answers`), whose losses are then not `forget_loss` and `retain_loss`.
        micro_batch_size: Pairs encoded at once where a whole batch does not fit; the gradient stays that of the batch.
        refine: (CLIP, task, gradients) -> the gradients that are scored, searched and stepped along; None: as they are.
        gradient_file: Gradients of `python -m muwa.gradients export`, checked against this run, in place of computing.
        world: The processes that take gradients together; all but the first stop after that, with an empty edit.

    Returns:
        The edit; without deltas where the search found no feasible step.

    Raises:
        ValueError: A setting is out of range, before any compute; or the gradient file was computed from something else.
    """
    recipe = Recipe(forget_loss, retain_loss, batch_size, seed, precision)
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ValueError(f"method.micro_batch_size: got {micro_batch_size}, want at least 1, or null for whole batches")
    clips = {"": model} if isinstance(model, Clip) else model.clips
    if isinstance(model, Diffusion):
        layer_search = _with_classifier(layer_search)
        if gradient_file is not None and len(clips) > 1:
            raise ValueError("gradients: one file holds the gradients of one CLIP; this pipeline has two text encoders")
    _check_gradient(model, gradient, layer_search, gradient_file)
    for clip in clips.values():
        check_search(clip, layer_search)
    edits, touched = [], []
    for name in task.names:
        found: dict[str, Gradients] = {}
        own: Gradients | None
        for encoder, clip in clips.items():
            if gradient == "answer" and isinstance(model, Vlm):
                own = answer_gradients(
                    model,
                    task,
                    name,
                    batch_size=micro_batch_size or batch_size,
                    seed=seed,
                    store=store,
                    progress=progress,
                )
            elif gradient_file is None:
                own = gradients(clip, task, name, recipe, store=store, micro_batch_size=micro_batch_size, world=world,
                                progress=progress)  # fmt: skip
            else:
                own = read_gradients(gradient_file, origin(clip, task, name, recipe)) if world.leads else None
            if own is not None:
                own = found[encoder] = own if refine is None else refine(clip, task, own)
                log("gradients", {"concept": name, "norms": norms(own), "n": [own.n_forget, own.n_retain]})
        if not world.leads:
            continue
        told: list[str] = []

        def tell(event: str, row: dict[str, object], told: list[str] = told) -> None:
            told.append(event)
            log(event, row)

        free: dict[str, object] = {"log": tell, "progress": progress}
        if not isinstance(model, Clip):
            search = store.get(
                "search", layer_search, model, found, task.only(name), name, _free=free | {"store": store}
            )
            edits.append(candidates.edit_of(search, model, found))
        else:
            free["features"] = Features(model, store)
            search = store.get("search", layer_search, model, found[""], task.only(name).probe, name, _free=free)
            edits.append(edit_of(search, model, found[""]))
        if not told:
            replay(search, log)
        touched.append(next(iter(found.values())))
    samples = sum(own.n_forget for own in touched) + max((own.n_retain for own in touched), default=0)
    return replace(add_edits(edits), samples=len(clips) * samples)


def _with_classifier(search: Callable[..., Search]) -> Callable[..., Search]:
    """The same search with its classifier made, so that the cache goes by its weights, not by its path.

    Raises:
        ValueError: The search does not look at what is drawn.
    """
    if not isinstance(search, partial) or "classifier" not in search.keywords:
        raise ValueError(
            "layer_search: a text-to-image model wants layer_search=generation, which looks at what it draws"
        )
    make = search.keywords["classifier"]
    made = make() if callable(make) else make
    return partial(search.func, *search.args, **{**search.keywords, "classifier": made})


def _check_gradient(
    model: Clip | Diffusion | Vlm, gradient: str, search: Callable[..., Search], gradient_file: Path | None
) -> None:
    """Refuse a gradient or a search that the model has not.

    Raises:
        ValueError: Says which setting does not fit which model.
    """
    if gradient not in ("clip", "answer"):
        raise ValueError(f"method.gradient: got {gradient!r}, want clip or answer")
    if gradient == "answer" and not isinstance(model, Vlm):
        raise ValueError("method.gradient=answer: only a vision-language model (model=vlm) answers; take clip")
    if gradient == "answer" and gradient_file is not None:
        raise ValueError("gradients: a file holds gradients of a CLIP; method.gradient=answer computes its own")
    if isinstance(model, Vlm) and not (isinstance(search, partial) and "wordings" in search.keywords):
        raise ValueError(
            "layer_search: a vision-language model wants layer_search=answering, which looks at what it says"
        )


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

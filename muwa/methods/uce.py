"""UCE: rewrite the cross-attention keys and values of a UNet in closed form (arXiv 2308.14761, WACV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from muwa.cache.store import Store
from muwa.layer_search.steps import Log, silent
from muwa.methods._prompts import anchored, kept
from muwa.methods._unet import check_above_zero, check_at_least, check_call, edit_of
from muwa.models.diffusion.denoiser import cross_attention
from muwa.models.diffusion.model import Diffusion
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Task
from muwa.types.edit import Edit

ENCODED = 64  # prompts at once


def unlearn(
    model: Diffusion,
    task: Task,
    *,
    store: Store,
    anchor: str = "",
    erase_scale: float = 1.0,
    preserve_scale: float = 0.1,
    lamb: float = 0.5,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """Make the forgotten names' prompts give the keys and values of the anchor's, and the retained names' prompts their own.

    W = (e sum W_0 a c^T + p sum W_0 k k^T + lamb W_0) (e sum c c^T + p sum k k^T + lamb I)^-1

    for every `attn2.to_k` and `attn2.to_v` W_0 of the UNet: c, a and k are token embeddings of the prompts to forget, of the
    anchor's at the same place, and of the prompts to keep; e, p are `erase_scale`, `preserve_scale`.

    Args:
        task: What to forget. Several names are forgotten together; what is kept are the names of its probe's retain
            pictures, and the empty prompt.
        anchor: Drawn in place of the names; "" for no name at all.
        lamb: How strongly W stays at W_0, in squared embedding norms.
        gradient_file: Not used; refused.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit; each name's move has `erase_scale` as its step.

    Raises:
        ValueError: A setting is out of range, before any compute; the model draws nothing, or has no cross-attention.

    Source: the paper's equation 7 with its v* = W_0 a. From the authors' code, not the equation: lamb, and which tokens
    count (of a prompt to forget and its anchor from the last word's last token to the end of the padding, aligned; of a
    prompt to keep, all). Differs: every prompt to forget has its own anchor prompt, the same with the name exchanged, where
    the authors give all of them one; the empty prompt is always kept, not only where nothing else is; and all W share one
    factor, W = W_0 (I + R M^-1), solved once in fp64.
    """
    check_call("uce", model, gradient_file)
    check_at_least({"preserve_scale": (preserve_scale, 0)})
    check_above_zero({"erase_scale": erase_scale, "lamb": lamb})
    pairs, keep = anchored(task, anchor), kept(task)
    names = cross_attention(model)
    if not world.leads:
        return Edit({}, ())
    change = store.get(
        "edit", shift, model, pairs, keep, erase_scale, preserve_scale, lamb, _free={"progress": progress}
    )
    log("edit", {"concept": ", ".join(task.names), "forgotten_prompts": len(pairs), "kept_prompts": len(keep)})
    weights = model.weights("unet")
    deltas = {name: (weights[name].double().cpu() @ change).float() for name in names}
    moved = {name: delta for name, delta in deltas.items() if delta.any()}
    return edit_of(model, task, moved, "cross-attention k, v", erase_scale)


def shift(
    model: Diffusion, pairs: Sequence[tuple[str, str]], keep: Sequence[str], erase: float, preserve: float, lamb: float, *,
    progress: bool = False,
) -> Tensor:  # fmt: skip
    """R M^-1 (d, d) fp64 on the CPU: every W_0 becomes W_0 (I + R M^-1).

    R = e sum (a - c) c^T, and M = e sum c c^T + p sum k k^T + lamb I: the formula of `unlearn` with W_0 taken out.
    """
    width = model.embed([""]).shape[-1]
    gram = lamb * torch.eye(width, dtype=torch.float64, device=model.device)
    pull = torch.zeros_like(gram)
    pieces = [keep[i : i + ENCODED] for i in range(0, len(keep), ENCODED)]
    for some in track(pieces, "encoding prompts", len(keep), show=progress, sizes=map(len, pieces)):
        k = model.embed(some).double().flatten(0, 1)
        gram += preserve * k.T @ k
    for target, anchor in pairs:
        c, a = aligned(model, target, anchor)
        gram += erase * c.T @ c
        pull += erase * (a - c).T @ c
    return torch.linalg.solve(gram, pull.T).T.cpu()  # gram is symmetric


def aligned(model: Diffusion, target: str, anchor: str) -> tuple[Tensor, Tensor]:
    """Token embeddings (n, d) fp64 of two prompts, each from its last word's last token on, as many as both have.

    Of an empty prompt from the start token on.
    """
    tokenizer = model.pipeline.tokenizer or model.pipeline.tokenizer_2
    masks = [tokenizer(text, padding="max_length", truncation=True)["attention_mask"] for text in (target, anchor)]
    starts = [sum(mask) - 2 for mask in masks]  # the end token is behind it
    c, a = model.embed([target, anchor]).double()
    count = len(c) - max(starts)
    return c[starts[0] : starts[0] + count], a[starts[1] : starts[1] + count]

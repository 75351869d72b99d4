"""Concept ablation: fine-tune a UNet to draw an anchor where a name is asked for (arXiv 2303.13516, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.layer_search.steps import Log, silent
from muwa.methods._prompts import ANCHORS, anchored
from muwa.methods._unet import Tuned, check_above_zero, check_at_least, check_call, edit_of, tell, tune
from muwa.models.diffusion.denoiser import Denoiser, cross_attention
from muwa.models.diffusion.model import Diffusion
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Task
from muwa.types.edit import Edit

WEIGHTS = {"cross-attn": "cross-attention k, v", "full": "all weights"}


def unlearn(
    model: Diffusion,
    task: Task,
    *,
    store: Store,
    anchor: str | None = None,
    weights: str = "cross-attn",
    iterations: int = 200,
    learning_rate: float = 1e-4,
    batch_size: int = 8,
    pictures: int = 64,
    prior_weight: float = 0.0,
    seed: int = 0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """Fine-tune so that a prompt of a forgotten name gives what the original gives for the same prompt of the anchor.

    loss = | tuned(x_t, t, name) - original(x_t, t, anchor) |^2 + prior_weight | tuned(x_t, t, anchor) - truth |^2

    Means over pictures and latents; x_t is a picture that the original drew of the anchor, with noise added at a random t.

    Args:
        task: What to forget. Several names are forgotten together, all towards one anchor.
        anchor: Drawn in place of the names; None takes a neighbour by the task's kind (`prompting.ANCHORS`).
        weights: Which are tuned: "cross-attn", keys and values of the cross-attention; "full", all.
        pictures: How many are drawn of the anchor, as the model draws (its steps and guidance).
        prior_weight: Of the usual diffusion loss on the anchor's own pictures; 0 leaves it out.
        gradient_file: Not used; refused.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit; each name's move has `learning_rate * iterations` as its step. A run that was seen before is read back.

    Raises:
        ValueError: A setting is out of range, before any compute; the model draws nothing; the loss is no longer finite.

    Source: the paper's model-based variant, with AdamW and clipping as the authors' code has them. Differs: the target comes
    from the frozen original, where their code takes it from the model being tuned, without a gradient; anchor prompts are
    the task's, not written by a language model; pictures are not resized, flipped or filtered; and the start token's key
    and value carry gradients like the others'.
    """
    check_call("concept_ablation", model, gradient_file)
    if weights not in WEIGHTS:
        raise ValueError(f"method.weights: got {weights!r}, want one of {', '.join(WEIGHTS)}")
    check_at_least({"iterations": (iterations, 1), "batch_size": (batch_size, 1), "pictures": (pictures, 1),
                    "prior_weight": (prior_weight, 0)})  # fmt: skip
    check_above_zero({"learning_rate": learning_rate})
    if anchor is None and task.kind not in ANCHORS:
        raise ValueError(f"method.anchor: a task of kind {task.kind!r} has none of its own; give what to draw instead")
    pairs = anchored(task, ANCHORS[task.kind] if anchor is None else anchor)
    cross_attention(model)
    if not world.leads:
        return Edit({}, ())
    found = store.get("edit", train, model, pairs, weights, iterations, learning_rate, batch_size, pictures, prior_weight,
                      seed, _free={"progress": progress})  # fmt: skip
    tell(task, found["losses"], log)
    return edit_of(model, task, found["deltas"], WEIGHTS[weights], learning_rate * iterations, iterations * batch_size)


def train(
    model: Diffusion, pairs: Sequence[tuple[str, str]], weights: str, iterations: int, learning_rate: float, batch_size: int,
    pictures: int, prior_weight: float, seed: int, *, progress: bool = False,
) -> Tuned:  # fmt: skip
    """Draw the anchor and fine-tune on it, on copies: see `unlearn`. Picture i shows the anchor of pair i mod len(pairs)."""
    denoiser = Denoiser(model)
    names = cross_attention(model) if weights == "cross-attn" else list(denoiser.weights)
    targets = denoiser.conditions([target for target, _ in pairs])
    anchors = denoiser.conditions([anchor for _, anchor in pairs])
    generator = torch.Generator().manual_seed(seed)
    noise = denoiser.noise(pictures, generator)
    drawn, empty = [], denoiser.conditions([""])
    pieces = [range(i, min(i + model.batch, pictures)) for i in range(0, pictures, model.batch)]
    for piece in track(pieces, "drawing the anchor", pictures, show=progress, sizes=map(len, pieces)):
        given = anchors.select([i % len(pairs) for i in piece])
        drawn.append(denoiser.sample(noise[piece.start : piece.stop], given, empty, steps=model.sampling.steps,
                                     guidance=model.sampling.guidance)[0])  # fmt: skip
    latents = torch.cat(drawn)

    def loss(tuned: Mapping[str, Tensor]) -> Tensor:
        chosen = torch.randint(pictures, (batch_size,), generator=generator).tolist()
        times = torch.randint(denoiser.scheduler.config.num_train_timesteps, (batch_size,), generator=generator)
        t, noise = times.to(latents.device), denoiser.noise(batch_size, generator)
        x = denoiser.scheduler.add_noise(latents[chosen], noise, t)
        rows = [i % len(pairs) for i in chosen]
        with torch.no_grad():
            wanted = denoiser(x, t, anchors.select(rows))
        value = F.mse_loss(denoiser(x, t, targets.select(rows), tuned), wanted)
        if prior_weight:
            shown = denoiser(x, t, anchors.select(rows), tuned)
            value = value + prior_weight * F.mse_loss(shown, denoiser.truth(latents[chosen], noise, t))
        return value

    optimizer = partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.01)
    return tune(denoiser.weights, names, optimizer, loss, iterations=iterations, clip=1.0, progress=progress)

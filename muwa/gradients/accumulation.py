"""Gradients of batch losses, accumulated in place: whole batches or parts of them, one process or many, one gradient.

A contrastive loss ties all pairs of a batch together. Where a batch does not fit, its embeddings are computed without a
graph first, then the loss's gradient by embedding, then part after part again with a graph that this gradient is pushed
through. With several processes the embeddings of all are gathered, so that the loss is that of the global batch.

Source: GradCache (Gao et al. 2021, arXiv 2101.06983), section 3. Differs: the temperature's gradient is kept too; several
processes share one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muwa.gradients.losses import Loss
from muwa.models.clip.embeddings import pixel_batches, width
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Pairs

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Job:
    """One batch: which pairs, and what to add up: `weight * loss` of the pairs at some places in the batch, each."""

    pairs: Sequence[int]
    terms: Sequence[tuple[float, Sequence[int]]]


def accumulate(
    model: Clip, pairs: Pairs, jobs: Sequence[Job], loss: Loss, what: str, *, precision: str = "fp32",
    micro_batch_size: int | None = None, world: Distributed = ALONE, progress: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """The gradient of `sum over jobs and terms of weight * loss`, by every parameter.

    Peak memory is weights, one gradient and the activations of one part; pictures are decoded ahead of the compute.

    Args:
        model: In eval mode; its weights are not changed.
        loss: A batch mean of normalised embeddings (`muwa.gradients.losses`); its sign is kept.
        what: For the progress bar.
        precision: "fp32", or "bf16": the forward pass under autocast; weights, losses and sums stay fp32.
        micro_batch_size: Pairs encoded at once; None takes the whole batch. Changes the result by rounding only.
        world: The processes that share the work; all of them must call this, and all get the sum.

    Returns:
        Parameter name -> fp32 tensor of its shape, on the CPU; zero where the loss does not reach.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in model.weights.items()}
    tokens = model.tokenize(list(pairs.captions))
    mine = [[job.pairs[i] for i in world.share(len(job.pairs))] for job in jobs]
    parts = [[share[i : i + (micro_batch_size or len(share))] for i in range(0, len(share), micro_batch_size or len(share))]
             if share else [] for share in mine]  # fmt: skip
    images = [pairs.images[i] for share in mine for i in share]
    decoded = pixel_batches(model, images, [len(part) for share in parts for part in share])
    bar = track(zip(jobs, parts, strict=True), what, sum(len(job.pairs) for job in jobs), show=progress,
                sizes=[len(job.pairs) for job in jobs])  # fmt: skip
    for job, share in bar:
        batches = [(next(decoded), tokens[part]) for part in share]

        def encode(pixels: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return model.encode("vision", pixels, leaves), model.encode("text", prompts, leaves)

        _one(job, batches, encode, leaves["logit_scale"], loss, world, lambda: width(model))
    total = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in leaves.items()}
    world.add(total.values())
    return {name: tensor.cpu() for name, tensor in total.items()}


def _one(
    job: Job, batches: Sequence[tuple[Tensor, Tensor]], encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    logit_scale: Tensor, loss: Loss, world: Distributed, width: Callable[[], int],
) -> None:  # fmt: skip
    """Add the gradient of one job to the leaves."""

    def objective(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        values = [weight * loss(images[list(some)], texts[list(some)], scale) for weight, some in job.terms]
        return torch.stack(values).sum()

    if world.size == 1 and len(batches) == 1:
        objective(*encode(*batches[0]), logit_scale.exp()).backward()
        return
    with torch.set_grad_enabled(len(batches) == 1):
        done = [encode(*batch) for batch in batches]
    empty = logit_scale.new_zeros(0, width()) if not done else None
    sides = [torch.cat([pair[side] for pair in done]) if empty is None else empty for side in (0, 1)]
    images, texts = (world.gather(side, len(job.pairs)).requires_grad_() for side in sides)
    scale = logit_scale if world.leads else logit_scale.detach()  # its gradient is summed over ranks: counted once
    objective(images, texts, scale.exp()).backward()
    assert images.grad is not None
    assert texts.grad is not None
    start = world.share(len(job.pairs)).start
    for pixels, prompts in batches:
        rows = slice(start, start + len(prompts))
        pair = done[0] if len(batches) == 1 else encode(pixels, prompts)
        torch.autograd.backward(pair, (images.grad[rows], texts.grad[rows]))
        start += len(prompts)
        del pair  # its graph, before the next part's


def whole(batches: Sequence[Sequence[int]]) -> list[Job]:
    """The sum over pairs: each batch's mean loss times its pairs."""
    return [Job(batch, [(len(batch), range(len(batch)))]) for batch in batches]


def leaving_out(batches: Sequence[Sequence[int]], out: Sequence[int]) -> tuple[list[Job], int]:
    """What leaving pairs out of their batches adds to the sum; the batches that hold none of them are not touched.

    Returns:
        (one job for each batch that holds such a pair: its loss without them minus its loss with them; how many pairs
        are left out).
    """
    left_out, jobs, count = set(out), [], 0
    for batch in batches:
        kept = [place for place, pair in enumerate(batch) if pair not in left_out]
        if len(kept) < len(batch):
            count += len(batch) - len(kept)
            terms: list[tuple[float, Sequence[int]]] = [(-len(batch), range(len(batch)))]
            jobs.append(Job(batch, [*terms, (len(kept), kept)] if kept else terms))
    return jobs, count

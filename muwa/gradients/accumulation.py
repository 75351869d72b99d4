"""Accumulate the gradients of batch losses, over micro-batches and over several processes.

A contrastive loss couples all pairs of a batch. A batch that does not fit in memory is therefore cut into
micro-batches, and its gradient takes three steps:

1. Compute the embeddings of the whole batch, one micro-batch at a time, without a graph.
2. Differentiate the loss with respect to these embeddings.
3. Encode each micro-batch again, now with a graph, and backpropagate its rows of that derivative.

Several processes share each batch. They gather their embeddings, so that the loss is that of the whole batch.

Source: GradCache (Gao et al. 2021, arXiv 2101.06983), section 3. Differs: the gradient with respect to the
temperature is computed too, and several processes share one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.gradients.losses import Loss
from muwa.models.clip.embeddings import pixel_batches, width

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.run import Run
    from muwa.runtime.distributed import Distributed
    from muwa.types.data import Pairs

PRECISIONS = ("fp32", "bf16")
MicroBatch = tuple[Tensor, Tensor]  # the pixels and tokens of pairs that are encoded at once


@dataclass(frozen=True)
class Job:
    """One batch, and the weighted sum of losses on it that is differentiated.

    Args:
        pairs: Indices of the pairs in the batch.
        terms: The terms `weight * loss` of the sum, each as (weight, positions). The loss of a term is taken
            on the pairs at these positions of the batch.
    """

    pairs: Sequence[int]
    terms: Sequence[tuple[float, Sequence[int]]]


def accumulate(
    model: Clip,
    pairs: Pairs,
    jobs: Sequence[Job],
    loss: Loss,
    what: str,
    *,
    precision: str = "fp32",
    micro_batch_size: int | None = None,
    run: Run,
) -> dict[str, Tensor]:
    """The gradient of `sum over jobs and terms of weight * loss` with respect to every parameter.

    Peak memory is that of the weights, one gradient and the activations of one micro-batch. Images are
    decoded ahead.

    Args:
        model: A CLIP in eval mode. Its weights are not changed.
        pairs: The pairs that the jobs index.
        jobs: One job per batch.
        loss: A batch mean over normalised embeddings (`muwa.gradients.losses`). Its sign is not changed.
        what: The label of the progress bar.
        precision: "fp32", or "bf16" for a forward pass under autocast. Weights, losses and sums stay fp32.
        micro_batch_size: Pairs that are encoded at once; None takes whole batches. It changes the result by
            rounding only.
        run: Its processes share the work. All of them must call this, and all of them get the sum.

    Returns:
        Parameter name -> fp32 tensor of the parameter's shape, on the CPU; zero where the loss does not
        reach.
    """
    accumulator = _Accumulator.empty(model, loss, precision, run.distributed)
    tokens = model.tokenize(list(pairs.captions))
    rank_pairs = [[job.pairs[i] for i in run.distributed.share(len(job.pairs))] for job in jobs]
    cuts = [_cut(indices, micro_batch_size) for indices in rank_pairs]
    images = [pairs.images[i] for indices in rank_pairs for i in indices]
    decoded = pixel_batches(model, images, [len(some) for cut in cuts for some in cut])
    sizes = [len(job.pairs) for job in jobs]
    for job, cut in run.track(zip(jobs, cuts, strict=True), what, sum(sizes), sizes=sizes):
        accumulator.add(job, [(next(decoded), tokens[some]) for some in cut])
    return accumulator.total()


def _cut(indices: Sequence[int], size: int | None) -> list[Sequence[int]]:
    """The pairs of a batch that one process encodes, cut into micro-batches of at most `size` pairs.

    There is one micro-batch if `size` is None, and none if there are no pairs.

    >>> _cut([7, 8, 9], 2), _cut([7, 8, 9], None), _cut([], None)
    ([[7, 8], [9]], [[7, 8, 9]], [])
    """
    return [
        indices[i : i + (size or len(indices))] for i in range(0, len(indices), size or len(indices) or 1)
    ]


@dataclass(frozen=True)
class _Accumulator:
    """Adds up the gradients of the jobs of one `accumulate`.

    Args:
        leaves: Parameter name -> the weight as a leaf of the graph; its `grad` holds the sum so far.
        distributed: The processes that share each batch.
    """

    model: Clip
    leaves: Mapping[str, Tensor]
    loss: Loss
    precision: str
    distributed: Distributed

    @classmethod
    def empty(cls, model: Clip, loss: Loss, precision: str, distributed: Distributed) -> _Accumulator:
        """An accumulator without gradients so far."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in model.weights.items()}
        return cls(model, leaves, loss, precision, distributed)

    def encode(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Image and text embeddings of a micro-batch, (n, d) each."""
        pixels, tokens = micro_batch
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            images = self.model.encode("vision", pixels, self.leaves)
            return images, self.model.encode("text", tokens, self.leaves)

    def objective(self, job: Job, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """The weighted sum of losses of a job; `images` and `texts` are the embeddings of its whole batch."""
        values = [weight * self.loss(images[list(at)], texts[list(at)], scale) for weight, at in job.terms]
        return torch.stack(values).sum()

    def add(self, job: Job, micro_batches: Sequence[MicroBatch]) -> None:
        """Add the gradient of one job.

        Args:
            micro_batches: The pairs of the batch that this process encodes.
        """
        logit_scale = self.leaves["logit_scale"]
        if self.distributed.size == 1 and len(micro_batches) == 1:
            self.objective(job, *self.encode(micro_batches[0]), logit_scale.exp()).backward()
            return
        # a single micro-batch keeps its graph, so that it need not be encoded again below
        with torch.set_grad_enabled(len(micro_batches) == 1):
            encoded = [self.encode(one) for one in micro_batches]
        images, texts = (side.requires_grad_() for side in self._gathered(job, encoded))
        # In the end the gradients of the leaves are summed over ranks. Every rank differentiates the whole
        # loss, so only the main rank may add the gradient with respect to the scale.
        scale = logit_scale if self.distributed.is_main else logit_scale.detach()
        self.objective(job, images, texts, scale.exp()).backward()
        assert images.grad is not None
        assert texts.grad is not None
        start = self.distributed.share(len(job.pairs)).start
        for one in micro_batches:
            n = len(one[1])
            place = slice(start, start + n)
            embeddings = encoded[0] if len(micro_batches) == 1 else self.encode(one)
            torch.autograd.backward(embeddings, (images.grad[place], texts.grad[place]))
            start += n
            del embeddings  # frees its graph before the next micro-batch is encoded

    def _gathered(self, job: Job, encoded: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """The embeddings of the whole batch, from all processes: first of its images, then of its texts.

        Args:
            encoded: The embeddings of the micro-batches of this process.
        """
        empty = None if encoded else self.leaves["logit_scale"].new_zeros(0, width(self.model))
        for side in (0, 1):
            embeddings = torch.cat([pair[side] for pair in encoded]) if empty is None else empty
            yield self.distributed.gather(embeddings, len(job.pairs))

    def total(self) -> dict[str, Tensor]:
        """The gradients of all processes, summed, on the CPU."""
        total = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in self.leaves.items()}
        self.distributed.add(total.values())
        return {name: tensor.cpu() for name, tensor in total.items()}


def full_batch_jobs(batches: Sequence[Sequence[int]]) -> list[Job]:
    """Jobs that take every batch in full: its mean loss, times the number of its pairs.

    Args:
        batches: The indices of the pairs in each batch.
    """
    return [Job(batch, [(len(batch), range(len(batch)))]) for batch in batches]


def leave_out_jobs(batches: Sequence[Sequence[int]], left_out: Sequence[int]) -> tuple[list[Job], int]:
    """Jobs that give the change of the gradient when pairs are left out of their batches.

    Adding this change to the gradient of all batches (`full_batch_jobs`) gives the gradient without these
    pairs. There is one job per batch with such pairs: the loss of the other pairs times their number, minus
    the loss of the full batch times its number of pairs.

    Args:
        batches: The indices of the pairs in each batch.
        left_out: Indices of the pairs that are left out. Batches without such a pair need no job.

    Returns:
        (the jobs; the number of pairs that are left out).
    """
    gone, jobs, count = set(left_out), [], 0
    for batch in batches:
        staying = [place for place, pair in enumerate(batch) if pair not in gone]
        if len(staying) < len(batch):
            count += len(batch) - len(staying)
            terms: list[tuple[float, Sequence[int]]] = [(-len(batch), range(len(batch)))]
            jobs.append(Job(batch, [*terms, (len(staying), staying)] if staying else terms))
    return jobs, count

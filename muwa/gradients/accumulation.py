"""Accumulate the gradients of batch losses, over parts of batches and over several processes.

A contrastive loss couples all pairs of a batch. Where a batch does not fit in memory, there are three steps.
First, all embeddings are computed without a graph. Second, the loss is differentiated by the embeddings.
Third, each part of the batch is encoded again with a graph, and its rows of that derivative are
backpropagated. Several processes gather their embeddings, so that the loss is that of the global batch.

Source: GradCache (Gao et al. 2021, arXiv 2101.06983), section 3. Differs: the gradient of the temperature is
computed too; several processes share one batch.
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
Part = tuple[Tensor, Tensor]  # the pixels and tokens of pairs that are encoded at once


@dataclass(frozen=True)
class Job:
    """One batch and the sum to differentiate on it.

    Args:
        pairs: Indices of the pairs of the batch.
        terms: The summands `weight * loss`. Each is (weight, the positions in the batch that its loss is
            taken on).
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
    """The gradient of `sum over jobs and terms of weight * loss`, by every parameter.

    Peak memory is that of the weights, one gradient and the activations of one part. Images are decoded
    ahead.

    Args:
        model: In eval mode. Its weights are not changed.
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
    shared = _Pass.begin(model, loss, precision, run.distributed)
    tokens = model.tokenize(list(pairs.captions))
    shares = [[job.pairs[i] for i in run.distributed.share(len(job.pairs))] for job in jobs]
    parts = [_cut(share, micro_batch_size) for share in shares]
    images = [pairs.images[i] for share in shares for i in share]
    decoded = pixel_batches(model, images, [len(part) for parts_of_job in parts for part in parts_of_job])
    sizes = [len(job.pairs) for job in jobs]
    for job, parts_of_job in run.track(zip(jobs, parts, strict=True), what, sum(sizes), sizes=sizes):
        shared.add(job, [(next(decoded), tokens[part]) for part in parts_of_job])
    return shared.total()


def _cut(share: Sequence[int], size: int | None) -> list[Sequence[int]]:
    """`share` in parts of at most `size`; in one part if `size` is None. An empty share has no part.

    >>> _cut([7, 8, 9], 2), _cut([7, 8, 9], None), _cut([], None)
    ([[7, 8], [9]], [[7, 8, 9]], [])
    """
    return [share[i : i + (size or len(share))] for i in range(0, len(share), size or len(share) or 1)]


@dataclass(frozen=True)
class _Pass:
    """What all jobs of one `accumulate` share. Gradients are added to `leaves`, the parameters."""

    model: Clip
    leaves: Mapping[str, Tensor]
    loss: Loss
    precision: str
    processes: Distributed

    @classmethod
    def begin(cls, model: Clip, loss: Loss, precision: str, processes: Distributed) -> _Pass:
        """A pass without gradients so far."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in model.weights.items()}
        return cls(model, leaves, loss, precision, processes)

    def encode(self, part: Part) -> tuple[Tensor, Tensor]:
        """Image and text embeddings of a part, (n, d) each."""
        pixels, tokens = part
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            images = self.model.encode("vision", pixels, self.leaves)
            return images, self.model.encode("text", tokens, self.leaves)

    def objective(self, job: Job, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """The sum of a job's terms; `images` and `texts` are the embeddings of its whole batch."""
        values = [weight * self.loss(images[list(at)], texts[list(at)], scale) for weight, at in job.terms]
        return torch.stack(values).sum()

    def add(self, job: Job, parts: Sequence[Part]) -> None:
        """Add the gradient of one job to the leaves. `parts` are what this process encodes of the batch."""
        logit_scale = self.leaves["logit_scale"]
        if self.processes.size == 1 and len(parts) == 1:
            self.objective(job, *self.encode(parts[0]), logit_scale.exp()).backward()
            return
        with torch.set_grad_enabled(len(parts) == 1):
            encoded = [self.encode(part) for part in parts]
        images, texts = (side.requires_grad_() for side in self._gathered(job, encoded))
        # In the end the gradients of the leaves are summed over ranks. Every rank differentiates the whole
        # loss, so only the main rank may add the gradient of the scale.
        scale = logit_scale if self.processes.is_main else logit_scale.detach()
        self.objective(job, images, texts, scale.exp()).backward()
        assert images.grad is not None
        assert texts.grad is not None
        start = self.processes.share(len(job.pairs)).start
        for part in parts:
            place = slice(start, start + len(part[1]))
            embeddings = encoded[0] if len(parts) == 1 else self.encode(part)
            torch.autograd.backward(embeddings, (images.grad[place], texts.grad[place]))
            start += len(part[1])
            del embeddings  # frees its graph before the next part is encoded

    def _gathered(self, job: Job, encoded: Sequence[tuple[Tensor, Tensor]]) -> Iterator[Tensor]:
        """The embeddings of the whole batch, from all processes: those of images, then those of texts."""
        empty = None if encoded else self.leaves["logit_scale"].new_zeros(0, width(self.model))
        for side in (0, 1):
            embeddings = torch.cat([pair[side] for pair in encoded]) if empty is None else empty
            yield self.processes.gather(embeddings, len(job.pairs))

    def total(self) -> dict[str, Tensor]:
        """The gradients of all processes, summed, on the CPU."""
        total = {n: torch.zeros_like(x) if x.grad is None else x.grad for n, x in self.leaves.items()}
        self.processes.add(total.values())
        return {name: tensor.cpu() for name, tensor in total.items()}


def whole(batches: Sequence[Sequence[int]]) -> list[Job]:
    """Jobs for the sum over pairs: the mean loss of each batch times the number of its pairs."""
    return [Job(batch, [(len(batch), range(len(batch)))]) for batch in batches]


def leaving_out(batches: Sequence[Sequence[int]], out: Sequence[int]) -> tuple[list[Job], int]:
    """Jobs for the change of that sum when pairs are left out of their batches.

    Args:
        out: Indices of the pairs that are left out. Batches without such a pair need no job.

    Returns:
        (One job for each batch with such a pair: its sum without these pairs minus its sum with them; the
        number of pairs that are left out.)
    """
    left_out, jobs, count = set(out), [], 0
    for batch in batches:
        staying = [place for place, pair in enumerate(batch) if pair not in left_out]
        if len(staying) < len(batch):
            count += len(batch) - len(staying)
            terms: list[tuple[float, Sequence[int]]] = [(-len(batch), range(len(batch)))]
            jobs.append(Job(batch, [*terms, (len(staying), staying)] if staying else terms))
    return jobs, count

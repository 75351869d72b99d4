"""Several processes that compute one gradient together: `torchrun --nproc-per-node N launch.py ...`.

Each rank takes its share of every batch. The main rank (rank 0) alone reads and writes the cache, searches,
evaluates and reports; the worker ranks help with the gradients.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from muwa.runtime.devices import check_device

T = TypeVar("T")
# Worker ranks wait in a collective while the main rank searches. Torchrun ends them if a process dies.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Distributed:
    """The rank of this process and the number of processes; a single process by default."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the main rank, rank 0."""
        return self.rank == 0

    def share(self, n: int, rank: int | None = None) -> range:
        """The positions in a batch of `n` that a rank (by default this one) computes.

        Each share is contiguous; together they cover the batch once.
        """
        rank = self.rank if rank is None else rank
        return range(n * rank // self.size, n * (rank + 1) // self.size)

    def gather(self, rows: Tensor, n: int) -> Tensor:
        """The rows of a whole batch, (n, d), without a graph.

        Args:
            rows: The rows of this rank's `share`.
            n: Rows of the batch.
        """
        if self.size == 1:
            return rows.detach()
        counts = [len(self.share(n, rank)) for rank in range(self.size)]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        parts = [torch.empty_like(padded) for _ in counts]
        with _connected():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                with _connected():
                    dist.all_reduce(tensor)

    def broadcast(self, value: T) -> T:
        """The `value` of the main rank, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        with _connected():
            dist.broadcast_object_list(box, src=0)
        return box[0]


ALONE = Distributed()


@contextmanager
def _connected() -> Iterator[None]:
    """Say in one line that the processes do not reach each other, above all because one of them was killed.

    Raises:
        ConnectionError: What they exchange in this block did not arrive.
    """
    try:
        yield
    except RuntimeError as error:  # of gloo or NCCL
        raise ConnectionError(
            "torchrun: another process of this run is gone. Finished stages are kept in the cache: type the "
            f"same command again to go on from there. It was told: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def join(device: str) -> Iterator[Distributed]:
    """Join the processes that torchrun started, within this context. Without torchrun it yields `ALONE`.

    Args:
        device: "cpu" (gloo) or "cuda" (NCCL; each process takes the GPU of its local rank).

    Raises:
        ValueError: The device is one GPU ("cuda:1"): all processes would take the same one. Or this process
            has no GPU.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device.startswith("cuda:"):
        raise ValueError(
            f"runtime.device={device}: torchrun gives each process its own GPU; say runtime.device=cuda"
        )
    if device == "cuda":
        check_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Distributed(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()

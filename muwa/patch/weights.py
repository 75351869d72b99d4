"""Named tensors in memory: fingerprints, adding a delta, and comparing two tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from muwa.fingerprint import digest

HALVES = (torch.float16, torch.bfloat16)
_BUFFERS = ("attn_mask", "position_ids", "num_batches_tracked", "running_mean", "running_var")


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of shape and fp32 bytes: an fp16 tensor and its fp32 cast have the same digest."""
    total = hashlib.sha256(str(tuple(tensor.shape)).encode())
    total.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return total.hexdigest()


def fingerprint_of_digests(digests: Mapping[str, str]) -> str:
    """SHA-256 of tensor digests and their names, in the order of the names."""
    return digest([part for name in sorted(digests) for part in (name, digests[name])])


def is_weight(name: str, tensor: Tensor) -> bool:
    """Whether a stored tensor is a weight. Masks, position ids, running statistics and integers are not."""
    return tensor.is_floating_point() and not name.endswith(_BUFFERS)


def weights_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a set of weights. A patch is bound to it.

    The fingerprint is the same in every dtype that holds the weights exactly.
    """
    return fingerprint_of_digests({n: tensor_digest(t) for n, t in weights.items() if is_weight(n, t)})


def add_delta(base: Tensor, delta: Tensor) -> Tensor:
    """`fp32(base) + delta`, cast back to the dtype of `base`."""
    return (base.float() + delta.to(base.device)).to(base.dtype)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and dtype, and equal values."""
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


def same_bits(stored: Tensor, expected: Tensor) -> bool:
    """Whether `stored` equals `expected` cast to its dtype, directly or via fp16 or bf16."""
    if stored.shape != expected.shape:
        return False
    stored, expected = stored.cpu(), expected.cpu()
    return any(torch.equal(stored, expected.to(dtype).to(stored.dtype)) for dtype in (stored.dtype, *HALVES))

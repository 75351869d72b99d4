"""A patch as a LoRA: two thin matrices for each edited layer, for tools that load those.

    python -m muwa.patch lora PATCH --rank R --out FILE

LoRA adds B A to a linear layer's weight (Hu et al. 2022, arXiv 2106.09685, equation 3). The best B A of rank
R is the truncated singular value decomposition of the delta (Eckart and Young 1936). The delta of a one-layer
edit need not be of low rank, so the error that remains is printed and stored for each layer. A patch is
exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from muwa.drafts import new_file
from muwa.patch import names
from muwa.patch.apply import Patch

FORMAT = "muwa.lora/1"
# The names of A and B that diffusers writes: in a text encoder, in the UNet.
_FACTORS = (("lora_linear_layer.down", "lora_linear_layer.up"), ("lora_A", "lora_B"))
_TEXT_LINEAR = (
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "out_proj.weight",
    "fc1.weight",
    "fc2.weight",
)


def save_lora(path: Path, patch: Patch, rank: int) -> dict[str, float]:
    """Write a patch's deltas as a LoRA that `load_lora_weights` of diffusers reads (with the package peft).

    Every layer has the same rank, and no alpha is stored, so its scale is 1. The file's metadata has, under
    "muwa.lora/1", the rank, the errors and the fingerprint of the patch's base.

    Returns:
        Layer -> relative Frobenius error |delta - B A| / |delta|; 0 is exact, 1 is no edit.

    Raises:
        ValueError: The rank is below 1; or the patch edits something that is no linear layer of a text
            encoder or UNet. Names it.
    """
    if rank < 1:
        raise ValueError(f"--rank: got {rank}, want at least 1")
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for layer, delta in _linear_deltas(patch).items():
        if not delta.any():
            continue
        a, b, errors[layer] = truncated(delta, rank)
        first, second = _FACTORS[layer.partition(".")[0] == "unet"]
        tensors |= {f"{layer}.{first}.weight": a, f"{layer}.{second}.weight": b}
    if not tensors:
        raise ValueError("the patch changes nothing, so there is no LoRA of it")
    about = {"rank": rank, "relative_frobenius_error": errors, "base_fingerprint": patch.base_fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as draft:
        save_file(tensors, draft, metadata={FORMAT: json.dumps(about, sort_keys=True)})
    return errors


def truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of a matrix of a given rank.

    Args:
        delta: (out, in).

    Returns:
        (A (rank, in), B (out, rank), relative Frobenius error of B A). Both factors carry the square root of
        the singular values. Rows beyond the smaller side of `delta` are zero.
    """
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    error = (s[rank:].square().sum() / s.square().sum()).sqrt().item()
    root = s[:rank].sqrt()
    a, b = delta.new_zeros(rank, delta.shape[1]), delta.new_zeros(delta.shape[0], rank)
    a[: len(root)], b[:, : len(root)] = root[:, None] * v[:rank], u[:, :rank] * root
    return a, b, error


def _linear_deltas(patch: Patch) -> dict[str, Tensor]:
    """Module in the pipeline ("unet.mid_block...to_k") -> delta of its weight, (out, in), fp32.

    Raises:
        ValueError: See `save_lora`.
    """
    out: dict[str, Tensor] = {}
    for component, deltas in names.by_component(patch.deltas).items():
        clip = component in names.ENCODERS
        for name, delta in deltas.items():
            for full, part in _renamed(name, delta, clip).items():
                text = full.startswith("text_model.") and full.endswith(_TEXT_LINEAR)
                if part.ndim != 2 or not full.endswith(".weight") or (clip and not text):
                    raise ValueError(
                        f"{component}/{name}, shape {tuple(delta.shape)}: a LoRA of diffusers holds linear "
                        "layers of text encoders and UNets (no bias, norm, embedding, convolution, "
                        "projection or vision layer); use the patch itself, which is exact"
                    )
                out[f"{component}.{full.removesuffix('.weight')}"] = part.float()
    return out


def _renamed(name: str, delta: Tensor, clip: bool) -> Mapping[str, Tensor]:
    """The delta under full names if it is a CLIP's; as it is if it has no counterpart there."""
    if not clip:
        return {name: delta}
    try:
        return names.to_full_names({name: delta})
    except KeyError:
        return {name: delta}

"""Transformer blocks in their two halves, so that a tower can be entered between attention and MLP.

    middle = x + attention(norm(x))        out = middle + mlp(norm(middle))

The three kinds of pre-norm block that CLIPs are made of are known: open_clip's, Hugging Face's, timm's. Any other block is
run whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

Call = tuple[Sequence[Any], Mapping[str, Any]]  # what a tower hands its blocks beside x: mask, flags
Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Halves:
    """A block as two functions that together are its `forward`; module names within the block tell where a weight is.

    Args:
        first, second: The halves; `first` takes x (n, length, d) and the call's other arguments.
        pooled: The first half for one row a sample: x, rows (n,) -> (n, 1, d); None where it is not known how.
        second_names: Prefixes of the weights in the second half; all others are in the first.
        first_last, second_last: The linear map that ends each half: the half is affine in its weight.
    """

    first: Callable[[Tensor, Call], Tensor]
    second: Callable[[Tensor], Tensor]
    pooled: Callable[[Tensor, Tensor, bool], Tensor] | None
    second_names: tuple[str, ...]
    first_last: str
    second_last: str


def halves(block: nn.Module) -> Halves | None:
    """The halves of a known block, None for any other (subclasses too: they may do something else)."""
    if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv"):
        return _open_clip(block)
    if type(block) is CLIPEncoderLayer:
        return _hugging_face(block)
    return _timm(block) if type(block) is Block else None


def _open_clip(block: ResidualAttentionBlock) -> Halves:
    attn = block.attn

    def first(x: Tensor, call: Call) -> Tensor:
        return x + block.ls_1(block.attention(block.ln_1(x), **_named(call, "k_x", "v_x", "attn_mask")))

    def pooled(x: Tensor, rows: Tensor, causal: bool) -> Tensor:
        d = attn.embed_dim
        w, b = attn.in_proj_weight, attn.in_proj_bias

        def query(h: Tensor) -> Tensor:
            return F.linear(h, w[:d], b[:d] if b is not None else None)

        def keys(h: Tensor) -> Tensor:
            return F.linear(h, w[d:], b[d:] if b is not None else None)

        seen = attend(block.ln_1(x), rows, query, keys, attn.num_heads, causal)
        return take(x, rows) + block.ls_1(F.linear(seen, attn.out_proj.weight, attn.out_proj.bias))

    def second(x: Tensor) -> Tensor:
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    return Halves(
        first, second, pooled, ("ln_2.", "mlp.", "ls_2."), "attn.out_proj.weight", "mlp.c_proj.weight"
    )


def _hugging_face(block: CLIPEncoderLayer) -> Halves:
    attn = block.self_attn

    def first(x: Tensor, call: Call) -> Tensor:
        return x + attn(hidden_states=block.layer_norm1(x), **_named(call, "attention_mask"))[0]

    def pooled(x: Tensor, rows: Tensor, causal: bool) -> Tensor:
        def keys(h: Tensor) -> Tensor:
            return torch.cat([attn.k_proj(h), attn.v_proj(h)], -1)

        return take(x, rows) + attn.out_proj(
            attend(block.layer_norm1(x), rows, attn.q_proj, keys, attn.num_heads, causal)
        )

    def second(x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))

    names = ("layer_norm2.", "mlp.")
    return Halves(first, second, pooled, names, "self_attn.out_proj.weight", "mlp.fc2.weight")


def _timm(block: Block) -> Halves:
    def first(x: Tensor, call: Call) -> Tensor:
        return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), *call[0], **call[1])))

    def second(x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    return Halves(first, second, None, ("norm2.", "mlp.", "ls2."), "attn.proj.weight", "mlp.fc2.weight")


def _named(call: Call, *names: str) -> dict[str, Any]:
    """A call's arguments by name; `names` are those of the positional ones."""
    return {**dict(zip(names, call[0], strict=False)), **call[1]}


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Row `rows[i]` of sample i: (n, length, d) -> (n, 1, d)."""
    return x[torch.arange(len(x), device=x.device), rows][:, None]


def attend(h: Tensor, rows: Tensor, query: Project, keys: Project, heads: int, causal: bool) -> Tensor:
    """Attention of one row a sample to all rows (or, if `causal`, to those up to it), before the output projection.

    Args:
        h: (n, length, d), normalised.
        rows: (n,) the row of each sample that asks.
        query: (n, 1, d) -> (n, 1, d).
        keys: (n, length, d) -> (n, length, 2 d), keys and values side by side.

    Returns:
        (n, 1, d).
    """
    n, length, _ = h.shape
    q = query(take(h, rows)).view(n, 1, heads, -1).transpose(1, 2)
    k, v = (part.view(n, length, heads, -1).transpose(1, 2) for part in keys(h).chunk(2, -1))
    mask = (torch.arange(length, device=h.device) <= rows[:, None])[:, None, None] if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(n, 1, -1)

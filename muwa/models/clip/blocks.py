"""Transformer blocks in two halves, so that a forward can stop between attention and MLP.

    middle = x + attention(norm(x))        out = middle + mlp(norm(middle))

CLIPs have three kinds of pre-norm block that are known here: open_clip's, Hugging Face's and timm's. Any
other block runs as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

# A name, because the import of the class takes a second that only Hugging Face's models need.
HUGGING_FACE_BLOCK = "transformers.models.clip.modeling_clip.CLIPEncoderLayer"
Call = tuple[Sequence[Any], Mapping[str, Any]]  # what a tower passes to a block besides x: mask, flags
Project = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Halves:
    """A block as two functions, whose composition is its `forward`. Weight names are relative to the block.

    Args:
        first: The half with attention: x (n, length, d) and the call's other arguments -> (n, length, d).
        second: The half with the MLP: (n, length, d) -> (n, length, d).
        pooled: The first half for one token of each input: x, its index (n,), whether attention is causal ->
            (n, 1, d). None where this is not implemented.
        second_prefixes: Prefixes of the weights in the second half; all others are in the first.
        first_output, second_output: The weight of the last linear map in each half. The half is affine in it.
    """

    first: Callable[[Tensor, Call], Tensor]
    second: Callable[[Tensor], Tensor]
    pooled: Callable[[Tensor, Tensor, bool], Tensor] | None
    second_prefixes: tuple[str, ...]
    first_output: str
    second_output: str


def halves(block: nn.Module) -> Halves | None:
    """The halves of a known kind of block, else None. A subclass is unknown: it may compute anything."""
    if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv"):
        return _open_clip(block)
    if f"{type(block).__module__}.{type(block).__qualname__}" == HUGGING_FACE_BLOCK:
        return _hugging_face(block)
    return _timm(block) if type(block) is Block else None


def _open_clip(block: ResidualAttentionBlock) -> Halves:
    attn = block.attn

    def first(x: Tensor, call: Call) -> Tensor:
        return x + block.ls_1(block.attention(block.ln_1(x), **_named(call, "k_x", "v_x", "attn_mask")))

    def pooled(x: Tensor, indices: Tensor, causal: bool) -> Tensor:
        d = attn.embed_dim
        w, b = attn.in_proj_weight, attn.in_proj_bias

        def query(h: Tensor) -> Tensor:
            return F.linear(h, w[:d], b[:d] if b is not None else None)

        def keys(h: Tensor) -> Tensor:
            return F.linear(h, w[d:], b[d:] if b is not None else None)

        out = attend(block.ln_1(x), indices, query, keys, attn.num_heads, causal)
        return take(x, indices) + block.ls_1(F.linear(out, attn.out_proj.weight, attn.out_proj.bias))

    def second(x: Tensor) -> Tensor:
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    prefixes = ("ln_2.", "mlp.", "ls_2.")
    return Halves(first, second, pooled, prefixes, "attn.out_proj.weight", "mlp.c_proj.weight")


def _hugging_face(block: CLIPEncoderLayer) -> Halves:
    attn = block.self_attn

    def first(x: Tensor, call: Call) -> Tensor:
        return x + attn(hidden_states=block.layer_norm1(x), **_named(call, "attention_mask"))[0]

    def pooled(x: Tensor, indices: Tensor, causal: bool) -> Tensor:
        def keys(h: Tensor) -> Tensor:
            return torch.cat([attn.k_proj(h), attn.v_proj(h)], -1)

        out = attend(block.layer_norm1(x), indices, attn.q_proj, keys, attn.num_heads, causal)
        return take(x, indices) + attn.out_proj(out)

    def second(x: Tensor) -> Tensor:
        return x + block.mlp(block.layer_norm2(x))

    prefixes = ("layer_norm2.", "mlp.")
    return Halves(first, second, pooled, prefixes, "self_attn.out_proj.weight", "mlp.fc2.weight")


def _timm(block: Block) -> Halves:
    def first(x: Tensor, call: Call) -> Tensor:
        return x + block.drop_path1(block.ls1(block.attn(block.norm1(x), *call[0], **call[1])))

    def second(x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    return Halves(first, second, None, ("norm2.", "mlp.", "ls2."), "attn.proj.weight", "mlp.fc2.weight")


def _named(call: Call, *names: str) -> dict[str, Any]:
    """The arguments of a call as keywords; `names` are those of the positional arguments."""
    return {**dict(zip(names, call[0], strict=False)), **call[1]}


def take(x: Tensor, indices: Tensor) -> Tensor:
    """Token `indices[i]` of input i: (n, length, d) -> (n, 1, d)."""
    return x[torch.arange(len(x), device=x.device), indices][:, None]


def attend(h: Tensor, indices: Tensor, query: Project, keys: Project, heads: int, causal: bool) -> Tensor:
    """Attention of one token of each input to all its tokens, before the output projection.

    Args:
        h: (n, length, d), normalised.
        indices: (n,) index of the token whose query is taken.
        query: (n, 1, d) -> (n, 1, d).
        keys: (n, length, d) -> (n, length, 2 d), keys and values side by side.
        heads: The number of heads.
        causal: Whether the token attends to no later token.

    Returns:
        (n, 1, d).
    """
    n, length, _ = h.shape
    q = query(take(h, indices)).view(n, 1, heads, -1).transpose(1, 2)
    k, v = (part.view(n, length, heads, -1).transpose(1, 2) for part in keys(h).chunk(2, -1))
    mask = (torch.arange(length, device=h.device) <= indices[:, None])[:, None, None] if causal else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(n, 1, -1)

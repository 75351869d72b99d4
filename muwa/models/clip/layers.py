"""Which weights may be edited, and how they are grouped into layers: from parameter names and shapes alone.

Knows the three spellings in use: open_clip (`visual.transformer.resblocks.9.attn.in_proj_weight`), timm towers inside
open_clip (`visual.trunk.blocks.9.attn.qkv.weight`), Hugging Face (`vision_model.encoder.layers.9.self_attn.q_proj.weight`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from muwa.types.search import Layer, Part

GRANULARITIES = ("tensor", "qkv", "mlp", "head")

_SKIPPED = re.compile(r"bias|logit_scale|position|pos_embed|embedding|cls_token|latent|\.probe$")
_SKIPPED_HF = re.compile(r"norm|layrnorm")  # the release skips norms on Hugging Face models only
_BLOCK = re.compile(r"\.(?:resblocks|blocks|layers)\.(\d+)\.")
_INPUT = re.compile(r"conv1|ln_pre|patch_embed|pre_layrnorm|norm_pre")
_FUSED = re.compile(r"^(.*attn)\.(?:in_proj_weight|qkv\.weight)$")
_SPLIT = re.compile(r"^(.*self_attn)\.([qkv])_proj\.weight$")
_MLP = re.compile(r"^(.*mlp)\.(c_fc|c_proj|fc1|fc2)\.weight$")


def tower_of(name: str) -> str:
    """ "vision" or "text": the tower that parameter `name` belongs to (the release's rule: "visual"/"vision" in it)."""
    return "vision" if "visual" in name or "vision" in name else "text"


def is_candidate(name: str, tensor: Tensor) -> bool:
    """Whether a parameter may be edited: no bias, no embedding, no position, no temperature; on HF models no norm.

    Source: the release's name filters. Differs: timm's `pos_embed`, `cls_token` and pooling `latent` (SigLIP's
    `probe`), which the release's substrings miss, are skipped too.
    """
    hugging_face = name.startswith(("vision_model.", "text_model."))
    return not _SKIPPED.search(name) and not (hugging_face and _SKIPPED_HF.search(name)) and tensor.ndim >= 1


def depths(names: list[str]) -> dict[str, float]:
    """How deep in its tower each parameter sits: 0 before the blocks, 1 after them, (i + 1) / (n + 1) in block i of n."""
    blocks = {name: int(found[1]) if (found := _BLOCK.search(name)) else None for name in names}
    last = {
        tower: max((b + 1 for n, b in blocks.items() if b is not None and tower_of(n) == tower), default=0)
        for tower in ("vision", "text")
    }
    return {
        name: (block + 1) / (last[tower_of(name)] + 1)
        if block is not None
        else 0.0
        if _INPUT.search(name)
        else 1.0
        for name, block in blocks.items()
    }


def layers(weights: Mapping[str, Tensor], heads: Mapping[str, int], granularity: str) -> list[Layer]:
    """The candidates to edit, in the order of `weights`.

    Args:
        weights: Parameter name -> tensor.
        heads: Number of heads of each attention module, by module name ("visual.transformer.resblocks.9.attn").
        granularity: What counts as one layer:
            "tensor": a weight tensor as the library stores it. On Hugging Face models the score is the tensor's own,
                but q, k and v (and fc1 and fc2) are edited together with one step, as the release does.
            "qkv": query, key and value each for itself, also where open_clip and timm hold them as one tensor.
            "mlp": the two matrices of an MLP are one layer, and so are q, k and v.
            "head": one attention head: its rows of q, k and v and its columns of the output projection.

    Returns:
        One `Layer` each; together they cover every candidate weight once.

    Raises:
        ValueError: `granularity` is none of the four.

    Source: SLUG, section 1.5 of the release's facts (whole-layer editing); heads after arXiv 2603.14819.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"layer_search.granularity: got {granularity!r}, want one of {', '.join(GRANULARITIES)}"
        )
    candidates = {name: tensor for name, tensor in weights.items() if is_candidate(name, tensor)}
    depth = depths(list(weights))
    found: dict[str, Layer] = {}

    def add(name: str, like: str, scored: tuple[Part, ...], edited: tuple[Part, ...] | None = None) -> None:
        found.setdefault(name, Layer(name, tower_of(like), depth[like], scored, edited or scored))

    for name, tensor in candidates.items():
        fused, split, mlp = _FUSED.match(name), _SPLIT.match(name), _MLP.match(name)
        whole = (Part(name),)
        attention = fused or split
        if granularity == "head" and attention and attention[1] in heads:
            for head, parts in enumerate(_heads(attention[1], heads[attention[1]], candidates)):
                add(f"{attention[1]}.head{head}", name, parts)
        elif granularity == "head" and _is_output(name, heads):
            continue
        elif granularity == "qkv" and fused:
            third = len(tensor) // 3
            for i, letter in enumerate("qkv"):
                add(f"{name}[{letter}]", name, (Part(name, 0, i * third, third),))
        elif split and granularity in ("tensor", "mlp"):
            together = tuple(Part(f"{split[1]}.{letter}_proj.weight") for letter in "qkv")
            if granularity == "mlp":
                add(f"{split[1]}.qkv", name, together)
            else:
                add(name, name, whole, together)
        elif mlp and (granularity == "mlp" or (granularity == "tensor" and "encoder.layers." in name)):
            pair = ("fc1", "fc2") if mlp[2].startswith("fc") else ("c_fc", "c_proj")
            together = tuple(Part(f"{mlp[1]}.{part}.weight") for part in pair)
            if granularity == "mlp":
                add(mlp[1], name, together)
            else:
                add(name, name, whole, together)
        else:
            add(name, name, whole)
    return list(found.values())


def _is_output(name: str, heads: Mapping[str, int]) -> bool:
    """Whether `name` is the output projection of an attention module (its columns belong to the heads)."""
    return any(
        name.endswith(tail) and name.removesuffix(tail) in heads
        for tail in (".out_proj.weight", ".proj.weight")
    )


def _heads(module: str, count: int, candidates: Mapping[str, Tensor]) -> list[tuple[Part, ...]]:
    """The parts of each of `count` heads of attention `module`: rows of q, k, v and columns of the output."""
    parts: list[list[Part]] = [[] for _ in range(count)]
    for name, tensor in candidates.items():
        if not name.startswith(f"{module}."):
            continue
        if _FUSED.match(name):
            width = len(tensor) // 3
            size = width // count
            for head in range(count):
                parts[head] += [Part(name, 0, i * width + head * size, size) for i in range(3)]
        elif _SPLIT.match(name):
            size = len(tensor) // count
            for head in range(count):
                parts[head].append(Part(name, 0, head * size, size))
        elif name in (f"{module}.out_proj.weight", f"{module}.proj.weight"):
            size = tensor.shape[1] // count
            for head in range(count):
                parts[head].append(Part(name, 1, head * size, size))
    return [tuple(head) for head in parts]

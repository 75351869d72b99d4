"""Which weights may be edited, and how they are grouped into layers, from parameter names and shapes alone.

Three spellings are known:

- open_clip: `visual.transformer.resblocks.9.attn.in_proj_weight`
- timm towers inside open_clip: `visual.trunk.blocks.9.attn.qkv.weight`
- Hugging Face: `vision_model.encoder.layers.9.self_attn.q_proj.weight`
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

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
    """The tower of a parameter: "vision" if its name has "visual" or "vision" in it, else "text"."""
    return "vision" if "visual" in name or "vision" in name else "text"


def is_candidate(name: str, tensor: Tensor) -> bool:
    """Whether a parameter may be edited.

    Biases, embeddings, positions and the temperature may not; on Hugging Face models, norms may not either.

    Source: the release's name filters. They miss timm's `pos_embed`, `cls_token` and pooling query
    `latent` (`probe` in Hugging Face's SigLIP); we skip these too.
    """
    hugging_face = name.startswith(("vision_model.", "text_model."))
    return not _SKIPPED.search(name) and not (hugging_face and _SKIPPED_HF.search(name)) and tensor.ndim >= 1


def input_dim(name: str) -> int:
    """The input dimension of a weight: 0 for open_clip's projections (x @ W), else 1 (W @ x)."""
    return 0 if name in ("visual.proj", "text_projection", "text.text_projection") else 1


def as_matrix(name: str, tensor: Tensor) -> Tensor:
    """A view of a weight or gradient as (outputs, inputs). A convolution has channels x patch inputs."""
    return tensor.T if input_dim(name) == 0 else tensor.flatten(1)


def matrices(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights with input directions: those that may be edited and have at least 2 dimensions."""
    return [name for name, tensor in weights.items() if tensor.ndim > 1 and is_candidate(name, tensor)]


def depths(names: list[str]) -> dict[str, float]:
    """The depth of each parameter in its tower.

    It is 0 before the blocks, (i + 1) / (n + 1) in block i of n, and 1 after the blocks.
    """
    blocks = {name: int(match[1]) if (match := _BLOCK.search(name)) else None for name in names}
    count = {
        tower: max((b + 1 for n, b in blocks.items() if b is not None and tower_of(n) == tower), default=0)
        for tower in ("vision", "text")
    }

    def depth(name: str, block: int | None) -> float:
        if block is not None:
            return (block + 1) / (count[tower_of(name)] + 1)
        return 0.0 if _INPUT.search(name) else 1.0

    return {name: depth(name, block) for name, block in blocks.items()}


def layers(weights: Mapping[str, Tensor], heads: Mapping[str, int], granularity: str) -> list[Layer]:
    """The layers that may be edited, in the order of `weights`.

    Args:
        weights: Parameter name -> tensor.
        heads: Attention module ("visual.transformer.resblocks.9.attn") -> its number of heads.
        granularity: What counts as one layer:
            - "tensor": a weight tensor as the library stores it. On Hugging Face models each tensor has its
              own score, but one step edits q, k and v together (or fc1 and fc2), as in the release.
            - "qkv": query, key and value are one layer each, even if the library stores them in one tensor
              (open_clip, timm).
            - "mlp": the two matrices of an MLP are one layer, and so are q, k and v.
            - "head": one attention head: its rows of q, k and v and its columns of the output projection.

    Returns:
        Layers whose scored parts cover every candidate weight exactly once.

    Raises:
        ValueError: `granularity` is none of the four.

    Source: SLUG (arXiv 2407.11867) scores single weight tensors; docs/method.md, "What may be edited".
    Editing q, k and v (fc1 and fc2) together follows the release's scripts for Hugging Face models. Heads:
    arXiv 2603.14819 (the method `razor`).
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f"layer_search.granularity: got {granularity!r}, want one of {', '.join(GRANULARITIES)}"
        )
    candidates = {name: tensor for name, tensor in weights.items() if is_candidate(name, tensor)}
    depth = depths(list(weights))
    out: dict[str, Layer] = {}
    for name in candidates:
        for layer, scored, edited in _layers_of(name, candidates, heads, granularity):
            out.setdefault(layer, Layer(layer, tower_of(name), depth[name], scored, edited))
    return list(out.values())


Group = tuple[str, tuple[Part, ...], tuple[Part, ...]]  # layer name, scored parts, edited parts


def _layers_of(
    name: str, candidates: Mapping[str, Tensor], heads: Mapping[str, int], granularity: str
) -> Iterator[Group]:
    """The layers that hold weights of the tensor `name`; none if its columns belong to heads."""
    fused, split, mlp = _FUSED.match(name), _SPLIT.match(name), _MLP.match(name)
    attention = fused or split
    whole = (Part(name),)
    if granularity == "head" and attention and attention[1] in heads:
        for head, parts in enumerate(_heads(attention[1], heads[attention[1]], candidates)):
            yield f"{attention[1]}.head{head}", parts, parts
    elif granularity == "head" and _is_output(name, heads):
        return
    elif granularity == "qkv" and fused:
        third = len(candidates[name]) // 3
        for i, letter in enumerate("qkv"):
            parts = (Part(name, 0, i * third, third),)
            yield f"{name}[{letter}]", parts, parts
    elif split and granularity in ("tensor", "mlp"):
        together = tuple(Part(f"{split[1]}.{letter}_proj.weight") for letter in "qkv")
        yield (f"{split[1]}.qkv", together, together) if granularity == "mlp" else (name, whole, together)
    elif mlp and (granularity == "mlp" or (granularity == "tensor" and "encoder.layers." in name)):
        pair = ("fc1", "fc2") if mlp[2].startswith("fc") else ("c_fc", "c_proj")
        together = tuple(Part(f"{mlp[1]}.{part}.weight") for part in pair)
        yield (mlp[1], together, together) if granularity == "mlp" else (name, whole, together)
    else:
        yield name, whole, whole


def _is_output(name: str, heads: Mapping[str, int]) -> bool:
    """Whether `name` is the output projection of an attention module; its columns belong to the heads."""
    return any(
        name.endswith(tail) and name.removesuffix(tail) in heads
        for tail in (".out_proj.weight", ".proj.weight")
    )


def _heads(module: str, count: int, candidates: Mapping[str, Tensor]) -> list[tuple[Part, ...]]:
    """The parts of each head of attention `module`: rows of q, k, v and columns of the output projection."""
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

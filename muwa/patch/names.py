"""One tower, two spellings: open_clip's parameter names and Hugging Face's, and the tensors carried between them.

    transformer.resblocks.3.attn.in_proj_weight  <->  text_model.encoder.layers.3.self_attn.{q,k,v}_proj.weight
    visual.transformer.resblocks.0.mlp.c_fc.bias <->  vision_model.encoder.layers.0.mlp.fc1.bias
    text_projection                              <->  text_projection.weight (transposed)

The map is linear and invertible, so weights, gradients and deltas all go through it. Files on the hub and `CLIPModel` have
the levels `text_model.` and `vision_model.`; transformers 5 drops them from a tower that stands alone (`CLIPTextModel`
starts at `embeddings.`; LLaVA's tower at `model.vision_tower.embeddings.`). `to_hf` writes the full spelling; `fit` finds it
again under whatever level a target has: a tower is where a token embedding (text) or a patch embedding (vision) is.
open_clip's `CustomTextCLIP` puts its text tower under `text.`: that level is optional here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_BLOCK = {
    "ln_1.weight": "layer_norm1.weight", "ln_1.bias": "layer_norm1.bias",
    "ln_2.weight": "layer_norm2.weight", "ln_2.bias": "layer_norm2.bias",
    "attn.out_proj.weight": "self_attn.out_proj.weight", "attn.out_proj.bias": "self_attn.out_proj.bias",
    "mlp.c_fc.weight": "mlp.fc1.weight", "mlp.c_fc.bias": "mlp.fc1.bias",
    "mlp.c_proj.weight": "mlp.fc2.weight", "mlp.c_proj.bias": "mlp.fc2.bias",
}  # fmt: skip
_FUSED = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"text_projection", "visual.proj"}
_LEVELS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_MARKS = {"embeddings.token_embedding.weight": "text_model.", "embeddings.patch_embedding.weight": "vision_model."}
_PROJECTIONS = {"text_projection.weight": "text_model.", "visual_projection.weight": "vision_model."}
_OPEN_CLIP = re.compile(r"(?P<level>(?:visual\.)?transformer\.resblocks)\.(?P<n>\d+)\.(?P<rest>.+)")
_HF = re.compile(r"(?P<level>(?:text|vision)_model\.encoder\.layers)\.(?P<n>\d+)\.(?P<rest>.+)")
_OUTSIDE_BACK, _BLOCK_BACK, _LEVELS_BACK = (
    {new: old for old, new in table.items()} for table in (_OUTSIDE, _BLOCK, _LEVELS)
)
ENCODERS = ("text_encoder", "text_encoder_2")  # of a diffusers pipeline


def full_name(encoder: str, name: str) -> str:
    """The name of a delta or a layer among those of all encoders of a model: the second text encoder's have its name first.

    >>> full_name("text_encoder", "text_projection"), full_name("text_encoder_2", "text_projection")
    ('text_projection', 'text_encoder_2/text_projection')
    """
    return f"{encoder}/{name}" if encoder == ENCODERS[1] else name


def hf_names(name: str) -> list[str]:
    """The Hugging Face names of the open_clip parameter `name`: three (q, k, v) for a fused projection, else one.

    Raises:
        KeyError: No such parameter in a CLIP with two transformer towers.
    """
    plain = name.removeprefix("text.")
    if plain in _OUTSIDE:
        return [_OUTSIDE[plain]]
    found = _OPEN_CLIP.fullmatch(plain)
    if found and found["rest"] in _BLOCK:
        return [f"{_LEVELS[found['level']]}.{found['n']}.{_BLOCK[found['rest']]}"]
    if found and found["rest"] in _FUSED:
        stem = f"{_LEVELS[found['level']]}.{found['n']}.self_attn"
        return [f"{stem}.{part}_proj.{_FUSED[found['rest']]}" for part in "qkv"]
    raise KeyError(f"{name}: no parameter of an open_clip CLIP that Hugging Face's CLIPModel has too")


def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors (weights, gradients or deltas) under Hugging Face's names; fused projections are split.

    Raises:
        KeyError: A name has no counterpart.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = hf_names(name)
        parts = (
            tensor.chunk(3) if len(names) == 3 else [tensor.T if name.removeprefix("text.") in _TRANSPOSED else tensor]
        )
        out |= {new: part.contiguous() for new, part in zip(names, parts, strict=True)}
    return out


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_hf`. Of a fused projection, parts that are absent count as zero, as they do in a delta.

    Raises:
        KeyError: A name has no counterpart.
    """
    out: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _HF.fullmatch(name)
        if name in _OUTSIDE_BACK:
            out[_OUTSIDE_BACK[name]] = (tensor.T if _OUTSIDE_BACK[name] in _TRANSPOSED else tensor).contiguous()
        elif found and found["rest"] in _BLOCK_BACK:
            out[f"{_LEVELS_BACK[found['level']]}.{found['n']}.{_BLOCK_BACK[found['rest']]}"] = tensor
        elif found and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", found["rest"])):
            fused.setdefault(f"{_LEVELS_BACK[found['level']]}.{found['n']}.attn.in_proj_{part[2]}", {})[part[1]] = (
                tensor
            )
        else:
            raise KeyError(f"{name}: no parameter of a Hugging Face CLIPModel that open_clip's CLIP has too")
    for name, parts in fused.items():
        some = next(iter(parts.values()))
        out[name] = torch.cat([parts.get(p, torch.zeros_like(some)) for p in "qkv"])
    return out


def spelled(name: str, target: Iterable[str]) -> str | None:
    """How `target` (all parameter names of a model or a file) spells the full Hugging Face name `name`; None: not at all.

    Raises:
        ValueError: It has several such towers.
    """
    return _lookup(target)(name)


def fit(tensors: Mapping[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """`tensors`, under full Hugging Face names, under the names that `target` (a Hugging Face model or file) has for them.

    Raises:
        KeyError: `target` lacks some: names them.
        ValueError: `target` has more than one tower that they could belong to.
    """
    target = list(target)
    return {home: tensors[name] for name, home in _all(tensors, _lookup(target), target).items()}


def _all(wanted: Iterable[str], find: Callable[[str], str | None], target: Sequence[str]) -> dict[str, str]:
    """What `find` says of each name, once it knows them all."""
    found = {name: find(name) for name in wanted}
    if missing := [name for name, home in found.items() if home is None]:
        raise KeyError(
            f"{', '.join(missing[:4])}: not in this model, whose first parameters are {', '.join(target[:3])}"
        )
    return {name: home for name, home in found.items() if home is not None}


def _lookup(target: Iterable[str]) -> Callable[[str], str | None]:
    """`spelled` for many names of one target."""
    known = frozenset(target)
    towers = [(level, key.removesuffix(mark)) for mark, level in _MARKS.items() for key in known if key.endswith(mark)]
    towers = [(level, prefix) for level, prefix in towers if not prefix or prefix.endswith(".")]

    def find(name: str) -> str | None:
        if not towers:  # a few tensors of a model: only as they are
            return name if name in known else None
        level = next((level for level in _MARKS.values() if name.startswith(level)), _PROJECTIONS.get(name))
        spellings = set()
        for own, prefix in towers:
            if level in (own, None):
                outside = prefix.removesuffix(own)
                bare = name.removeprefix(own)
                spellings |= {f"{prefix}{bare}"} if bare != name else {f"{outside}{name}", f"{prefix}{name}"}
        kept = sorted(spellings & known)
        if len(kept) > 1:
            raise ValueError(f"{name}: matches {', '.join(kept)}: say which of these towers is meant")
        return kept[0] if kept else None

    return find


def is_full(name: str) -> bool:
    """Whether a CLIP's parameter name is Hugging Face's, in full, and not open_clip's (`logit_scale` is both)."""
    return name.startswith(tuple(_MARKS.values())) or name in _PROJECTIONS


def full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, in open_clip's or Hugging Face's spelling (or some in each), under full Hugging Face names.

    Raises:
        KeyError: as in `to_hf`.
    """
    theirs = {name: t for name, t in tensors.items() if is_full(name)}
    return {**to_hf({name: t for name, t in tensors.items() if name not in theirs}), **theirs}


def carry(tensors: Mapping[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """`tensors`, in open_clip's or Hugging Face's spelling, under the names that `target` (a Hugging Face tower) has.

    Raises:
        KeyError, ValueError: as in `to_hf` and `fit`.
    """
    return fit(full(tensors), target)


def places(name: str, tensor: Tensor, target: Iterable[str]) -> dict[str, Tensor]:
    """Where `target` keeps the CLIP parameter `name`: its own names -> their parts of `tensor`; empty when it has it not."""
    try:
        return carry({name: tensor}, target)
    except KeyError:
        return {}


def homes(wanted: Iterable[str], target: Iterable[str]) -> dict[str, str]:
    """Where `target`, in either spelling, keeps full Hugging Face names: full name -> the target's own.

    In an open_clip target, q, k and v of a block have one home.

    Raises:
        KeyError, ValueError: as in `fit`.
    """
    target = list(target)
    theirs = _open_clip_homes(target)
    return _all(wanted, theirs.get if theirs else _lookup(target), target)


def put_back(changed: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under full Hugging Face names as those of `weights` that they are, or are a part of: the inverse of `full`.

    Args:
        weights: At least those tensors that keep a part of `changed`, in the spelling of the model they are of.

    Raises:
        KeyError, ValueError: as in `fit`.
    """
    where = homes(changed, weights)
    if not _open_clip_homes(weights):
        return {where[name]: tensor for name, tensor in changed.items()}
    touched = {own: weights[own] for own in where.values()}
    plain = {own.removeprefix("text."): own for own in touched}
    return {plain[name]: tensor for name, tensor in to_open_clip({**to_hf(touched), **changed}).items()}


def is_open_clip(target: Iterable[str]) -> bool:
    """Whether parameter names are open_clip's."""
    return bool(_open_clip_homes(target))


def _open_clip_homes(target: Iterable[str]) -> dict[str, str]:
    """Full Hugging Face name -> the parameter of an open_clip CLIP that keeps it; empty for any other target."""
    out: dict[str, str] = {}
    for own in target:
        try:
            out |= dict.fromkeys(hf_names(own), own)
        except KeyError:
            continue
    return out if set(out.values()) - {"logit_scale"} else {}


def by_component(deltas: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors of an edit of a pipeline by component; a name without one ("unet/...") is the first text encoder's CLIP's."""
    out: dict[str, dict[str, Tensor]] = {}
    for key, delta in deltas.items():
        component, slash, name = key.partition("/")
        out.setdefault(component if slash else ENCODERS[0], {})[name if slash else key] = delta
    return out

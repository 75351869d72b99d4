"""The parameter names of a CLIP in open_clip and in Hugging Face, and the map of tensors between them.

    transformer.resblocks.3.attn.out_proj.bias   <-> text_model.encoder.layers.3.self_attn.out_proj.bias
    visual.transformer.resblocks.0.mlp.c_fc.bias <-> vision_model.encoder.layers.0.mlp.fc1.bias
    text_projection                              <-> text_projection.weight, transposed
    transformer.resblocks.3.attn.in_proj_weight  <-> ...layers.3.self_attn.{q,k,v}_proj.weight, three tensors

The map is linear and invertible, so it serves weights, gradients and deltas.

A full Hugging Face name starts with `text_model.` or `vision_model.`, as in `CLIPModel` and in files on the
hub. transformers 5 drops this level from a tower that stands alone: names of `CLIPTextModel` start with
`embeddings.`, those of LLaVA's tower with `model.vision_tower.embeddings.`. `to_hf` gives full names. `fit`
finds the names of a target, whatever its levels are: it looks for the token embedding (text) or the patch
embedding (vision) of a tower.

open_clip's `CustomTextCLIP` puts its text tower under `text.`; that level is optional here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

_MODULES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = {f"{old}.{kind}": f"{new}.{kind}" for old, new in _MODULES.items() for kind in ("weight", "bias")}
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
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # misspelt in the library
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
# The end of a name that every tower of a kind has -> the level of its full names.
_MARKS = {
    "embeddings.token_embedding.weight": "text_model.",
    "embeddings.patch_embedding.weight": "vision_model.",
}
_PROJECTIONS = {"text_projection.weight": "text_model.", "visual_projection.weight": "vision_model."}
_OPEN_CLIP = re.compile(r"(?P<level>(?:visual\.)?transformer\.resblocks)\.(?P<n>\d+)\.(?P<rest>.+)")
_HF = re.compile(r"(?P<level>(?:text|vision)_model\.encoder\.layers)\.(?P<n>\d+)\.(?P<rest>.+)")
_OUTSIDE_BACK, _BLOCK_BACK, _LEVELS_BACK = (
    {new: old for old, new in table.items()} for table in (_OUTSIDE, _BLOCK, _LEVELS)
)
ENCODERS = ("text_encoder", "text_encoder_2")  # the text encoders of a diffusers pipeline


def full_name(encoder: str, name: str) -> str:
    """The name of a delta or a layer of an encoder. Those of the second have its name before them.

    >>> full_name("text_encoder", "text_projection"), full_name("text_encoder_2", "text_projection")
    ('text_projection', 'text_encoder_2/text_projection')
    """
    return f"{encoder}/{name}" if encoder == ENCODERS[1] else name


def hf_names(name: str) -> list[str]:
    """The Hugging Face names of an open_clip parameter: three (q, k, v) for a fused projection, else one.

    Raises:
        KeyError: A CLIP with two transformer towers has no such parameter.
    """
    plain = name.removeprefix("text.")
    if plain in _OUTSIDE:
        return [_OUTSIDE[plain]]
    match = _OPEN_CLIP.fullmatch(plain)
    if match and match["rest"] in _BLOCK:
        return [f"{_LEVELS[match['level']]}.{match['n']}.{_BLOCK[match['rest']]}"]
    if match and match["rest"] in _FUSED:
        stem = f"{_LEVELS[match['level']]}.{match['n']}.self_attn"
        return [f"{stem}.{part}_proj.{_FUSED[match['rest']]}" for part in "qkv"]
    raise KeyError(f"{name}: no parameter of an open_clip CLIP that Hugging Face's CLIPModel has too")


def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's weights, gradients or deltas under full Hugging Face names.

    A fused projection becomes three tensors; the output projections of the towers are transposed.

    Raises:
        KeyError: A name has no counterpart.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = hf_names(name)
        if len(names) == 3:
            parts = list(tensor.chunk(3))
        else:
            parts = [tensor.T if name.removeprefix("text.") in _TRANSPOSED else tensor]
        out |= {new: part.contiguous() for new, part in zip(names, parts, strict=True)}
    return out


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_hf`. Missing parts of a fused projection become zero, as is right for a delta.

    Raises:
        KeyError: A name has no counterpart.
    """
    out: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _HF.fullmatch(name)
        if name in _OUTSIDE_BACK:
            out[_OUTSIDE_BACK[name]] = (
                tensor.T if _OUTSIDE_BACK[name] in _TRANSPOSED else tensor
            ).contiguous()
        elif match and match["rest"] in _BLOCK_BACK:
            out[f"{_LEVELS_BACK[match['level']]}.{match['n']}.{_BLOCK_BACK[match['rest']]}"] = tensor
        elif match and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match["rest"])):
            projection = f"{_LEVELS_BACK[match['level']]}.{match['n']}.attn.in_proj_{part[2]}"
            fused.setdefault(projection, {})[part[1]] = tensor
        else:
            raise KeyError(f"{name}: no parameter of a Hugging Face CLIPModel that open_clip's CLIP has too")
    for name, parts in fused.items():
        zero = torch.zeros_like(next(iter(parts.values())))
        out[name] = torch.cat([parts.get(p, zero) for p in "qkv"])
    return out


def spelled(name: str, target: Iterable[str]) -> str | None:
    """The name that a target has for a parameter; None if it lacks the parameter.

    Args:
        name: A full Hugging Face name.
        target: All parameter names of a Hugging Face model or file.

    Raises:
        ValueError: The target has several towers that the parameter could belong to.
    """
    return _lookup(target)(name)


def fit(tensors: Mapping[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """`tensors` under the names of a target.

    Args:
        tensors: Under full Hugging Face names.
        target: All parameter names of a Hugging Face model or file.

    Raises:
        KeyError: The target lacks some of them; names these.
        ValueError: The target has several towers that a parameter could belong to.
    """
    target = list(target)
    return {home: tensors[name] for name, home in _located(tensors, _lookup(target), target).items()}


def _located(
    wanted: Iterable[str], find: Callable[[str], str | None], target: Sequence[str]
) -> dict[str, str]:
    """Name -> `find(name)`; raises KeyError if one is None."""
    found = {name: find(name) for name in wanted}
    if missing := [name for name, home in found.items() if home is None]:
        raise KeyError(
            f"{', '.join(missing[:4])}: not in this model, whose first parameters are {', '.join(target[:3])}"
        )
    return {name: home for name, home in found.items() if home is not None}


def _lookup(target: Iterable[str]) -> Callable[[str], str | None]:
    """`spelled` as a function of the name, for many names of one target."""
    known = frozenset(target)
    marked = [
        (level, key.removesuffix(mark))
        for mark, level in _MARKS.items()
        for key in known
        if key.endswith(mark)
    ]
    towers = [(level, prefix) for level, prefix in marked if not prefix or prefix.endswith(".")]

    def find(name: str) -> str | None:
        if not towers:  # the target is a few tensors: only full names can be found
            return name if name in known else None
        level = next((level for level in _MARKS.values() if name.startswith(level)), _PROJECTIONS.get(name))
        spellings = set()
        for tower_level, prefix in towers:
            if level in (tower_level, None):
                outside = prefix.removesuffix(tower_level)
                bare = name.removeprefix(tower_level)
                spellings |= {f"{prefix}{bare}"} if bare != name else {f"{outside}{name}", f"{prefix}{name}"}
        matches = sorted(spellings & known)
        if len(matches) > 1:
            raise ValueError(f"{name}: matches {', '.join(matches)}: say which of these towers is meant")
        return matches[0] if matches else None

    return find


def is_full(name: str) -> bool:
    """Whether a CLIP's parameter name is a full Hugging Face name (`logit_scale`, which is both, is not)."""
    return name.startswith(tuple(_MARKS.values())) or name in _PROJECTIONS


def full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under full Hugging Face names. Each may be given under its name in either library.

    Raises:
        KeyError: As in `to_hf`.
    """
    hugging_face = {name: t for name, t in tensors.items() if is_full(name)}
    return {**to_hf({name: t for name, t in tensors.items() if name not in hugging_face}), **hugging_face}


def carry(tensors: Mapping[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """`tensors`, given as in `full`, under the names of `target`, a Hugging Face model or file.

    Raises:
        KeyError, ValueError: As in `to_hf` and `fit`.
    """
    return fit(full(tensors), target)


def places(name: str, tensor: Tensor, target: Iterable[str]) -> dict[str, Tensor]:
    """The parameters of `target` that hold the CLIP parameter `name`: their names -> their parts of `tensor`.

    Empty if the target lacks the parameter.
    """
    try:
        return carry({name: tensor}, target)
    except KeyError:
        return {}


def homes(wanted: Iterable[str], target: Iterable[str]) -> dict[str, str]:
    """Full Hugging Face name -> the target's name for it. The target may have the names of either library.

    In an open_clip target, q, k and v of a block share one parameter.

    Raises:
        KeyError, ValueError: As in `fit`.
    """
    target = list(target)
    in_open_clip = _open_clip_homes(target)
    return _located(wanted, in_open_clip.get if in_open_clip else _lookup(target), target)


def put_back(changed: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `weights` with their parts in `changed` replaced: the inverse of `full`.

    Args:
        changed: Under full Hugging Face names.
        weights: Under the names of either library; at least the tensors that hold a part of `changed`.

    Returns:
        The replaced tensors alone, under their names in `weights`.

    Raises:
        KeyError, ValueError: As in `fit`.
    """
    home = homes(changed, weights)
    if not is_open_clip(weights):
        return {home[name]: tensor for name, tensor in changed.items()}
    unchanged = {name: weights[name] for name in home.values()}
    with_level = {name.removeprefix("text."): name for name in unchanged}
    replaced = to_open_clip({**to_hf(unchanged), **changed})
    return {with_level[name]: tensor for name, tensor in replaced.items()}


def is_open_clip(target: Iterable[str]) -> bool:
    """Whether parameter names are open_clip's."""
    return bool(_open_clip_homes(target))


def _open_clip_homes(target: Iterable[str]) -> dict[str, str]:
    """Full Hugging Face name -> the open_clip parameter that holds it; empty for any other target."""
    out: dict[str, str] = {}
    for name in target:
        try:
            out |= dict.fromkeys(hf_names(name), name)
        except KeyError:
            continue
    return out if set(out.values()) - {"logit_scale"} else {}


def by_component(deltas: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The deltas of a pipeline's edit by component. Without one, a name is of the first text encoder's CLIP.

    >>> by_component({"unet/conv_in.weight": 1, "text_projection": 2})
    {'unet': {'conv_in.weight': 1}, 'text_encoder': {'text_projection': 2}}
    """
    out: dict[str, dict[str, Tensor]] = {}
    for key, delta in deltas.items():
        component, slash, name = key.partition("/")
        out.setdefault(component if slash else ENCODERS[0], {})[name if slash else key] = delta
    return out

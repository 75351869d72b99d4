"""The parameter names of a CLIP in open_clip and in Hugging Face, and the map of tensors between them.

    transformer.resblocks.3.attn.out_proj.bias   <-> text_model.encoder.layers.3.self_attn.out_proj.bias
    visual.transformer.resblocks.0.mlp.c_fc.bias <-> vision_model.encoder.layers.0.mlp.fc1.bias
    text_projection                              <-> text_projection.weight, transposed
    transformer.resblocks.3.attn.in_proj_weight  <-> ...layers.3.self_attn.{q,k,v}_proj.weight, three tensors

The map is linear and invertible, so it serves weights, gradients and deltas.

A full name is a parameter's name in Hugging Face's `CLIPModel` and in files on the hub: inside a tower it
starts with `text_model.` or `vision_model.`. Other models have other name prefixes. In transformers 5 the
names of a `CLIPTextModel` start with `embeddings.`, and those of LLaVA's tower with
`model.vision_tower.embeddings.`.

A target is a model or weight file whose own names are wanted. Functions take it as the list of all its
parameter names. Whatever its name prefixes are, they are found from the token embedding (text) or the patch
embedding (vision) of each tower.

    `to_hf`, `to_open_clip`   from one library to the other, with full names
    `to_full_names`           from either library to full names
    `rename_to_target`        from full names to the target's names
    `convert_to_target`       from either library to the target's names

open_clip's `CustomTextCLIP` puts its text tower under the name prefix `text.`, which is optional here.
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
_BLOCK_PREFIXES = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
# Suffix of a parameter name present in every text (vision) tower -> prefix of that tower's full names.
_MARKS = {
    "embeddings.token_embedding.weight": "text_model.",
    "embeddings.patch_embedding.weight": "vision_model.",
}
_PROJECTIONS = {"text_projection.weight": "text_model.", "visual_projection.weight": "vision_model."}
_OPEN_CLIP = re.compile(r"(?P<prefix>(?:visual\.)?transformer\.resblocks)\.(?P<n>\d+)\.(?P<rest>.+)")
_HF = re.compile(r"(?P<prefix>(?:text|vision)_model\.encoder\.layers)\.(?P<n>\d+)\.(?P<rest>.+)")
_OUTSIDE_BACK, _BLOCK_BACK, _BLOCK_PREFIXES_BACK = (
    {new: old for old, new in table.items()} for table in (_OUTSIDE, _BLOCK, _BLOCK_PREFIXES)
)
ENCODERS = ("text_encoder", "text_encoder_2")  # the text encoders of a diffusers pipeline


def delta_key(encoder: str, name: str) -> str:
    """The key of a delta or layer of an encoder. Names of the second encoder get its name as a prefix.

    >>> delta_key("text_encoder", "text_projection"), delta_key("text_encoder_2", "text_projection")
    ('text_projection', 'text_encoder_2/text_projection')
    """
    return f"{encoder}/{name}" if encoder == ENCODERS[1] else name


def hf_names(name: str) -> list[str]:
    """The full names of an open_clip parameter: three (q, k, v) for a fused projection, else one.

    Raises:
        KeyError: A CLIP with two transformer towers has no such parameter.
    """
    plain = name.removeprefix("text.")
    if plain in _OUTSIDE:
        return [_OUTSIDE[plain]]
    match = _OPEN_CLIP.fullmatch(plain)
    if match and match["rest"] in _BLOCK:
        return [f"{_BLOCK_PREFIXES[match['prefix']]}.{match['n']}.{_BLOCK[match['rest']]}"]
    if match and match["rest"] in _FUSED:
        stem = f"{_BLOCK_PREFIXES[match['prefix']]}.{match['n']}.self_attn"
        return [f"{stem}.{part}_proj.{_FUSED[match['rest']]}" for part in "qkv"]
    raise KeyError(f"{name}: no parameter of an open_clip CLIP that Hugging Face's CLIPModel has too")


def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's weights, gradients or deltas under full names.

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
    """The inverse of `to_hf`. Missing parts of a fused projection become zero, which only deltas allow.

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
            out[f"{_BLOCK_PREFIXES_BACK[match['prefix']]}.{match['n']}.{_BLOCK_BACK[match['rest']]}"] = tensor
        elif match and (part := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", match["rest"])):
            projection = f"{_BLOCK_PREFIXES_BACK[match['prefix']]}.{match['n']}.attn.in_proj_{part[2]}"
            fused.setdefault(projection, {})[part[1]] = tensor
        else:
            raise KeyError(f"{name}: no parameter of a Hugging Face CLIPModel that open_clip's CLIP has too")
    for name, parts in fused.items():
        zero = torch.zeros_like(next(iter(parts.values())))
        out[name] = torch.cat([parts.get(p, zero) for p in "qkv"])
    return out


def name_in_target(full_name: str, target: Iterable[str]) -> str | None:
    """The name that a Hugging Face target has for a parameter; None if it lacks the parameter.

    Raises:
        ValueError: The target has several towers that the parameter could belong to.
    """
    return _lookup(target)(full_name)


def rename_to_target(tensors: Mapping[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """Tensors under full names, renamed to the names of a Hugging Face target.

    Raises:
        KeyError: The target lacks some of the parameters; the message lists them.
        ValueError: The target has several towers that a parameter could belong to.
    """
    target = list(target)
    return {new: tensors[name] for name, new in _find_all(tensors, _lookup(target), target).items()}


def _find_all(
    full_names: Iterable[str], find: Callable[[str], str | None], target: Sequence[str]
) -> dict[str, str]:
    """Full name -> `find(full name)`; raises KeyError if one is None."""
    found = {name: find(name) for name in full_names}
    if missing := [name for name, new in found.items() if new is None]:
        raise KeyError(
            f"{', '.join(missing[:4])}: not in this model, whose first parameters are {', '.join(target[:3])}"
        )
    return {name: new for name, new in found.items() if new is not None}


def _lookup(target: Iterable[str]) -> Callable[[str], str | None]:
    """`name_in_target` as a function of the full name, for many names and one target."""
    known = frozenset(target)
    marked = [
        (full_prefix, key.removesuffix(mark))
        for mark, full_prefix in _MARKS.items()
        for key in known
        if key.endswith(mark)
    ]
    # (prefix of the tower's full names, prefix of its names in the target)
    towers = [(full_prefix, prefix) for full_prefix, prefix in marked if not prefix or prefix.endswith(".")]

    def find(name: str) -> str | None:
        if not towers:  # the target is a few tensors: only full names can be found
            return name if name in known else None
        wanted = next((start for start in _MARKS.values() if name.startswith(start)), _PROJECTIONS.get(name))
        spellings = set()
        for full_prefix, prefix in towers:
            if wanted in (full_prefix, None):
                outside = prefix.removesuffix(full_prefix)
                bare = name.removeprefix(full_prefix)
                spellings |= {f"{prefix}{bare}"} if bare != name else {f"{outside}{name}", f"{prefix}{name}"}
        matches = sorted(spellings & known)
        if len(matches) > 1:
            raise ValueError(f"{name}: matches {', '.join(matches)}: say which of these towers is meant")
        return matches[0] if matches else None

    return find


def is_full_name(name: str) -> bool:
    """Whether a name is a full name. `logit_scale` is valid in both libraries and is not counted."""
    return name.startswith(tuple(_MARKS.values())) or name in _PROJECTIONS


def to_full_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under full names. Each may be given under its open_clip name or its full name.

    Raises:
        KeyError: As in `to_hf`.
    """
    hugging_face = {name: t for name, t in tensors.items() if is_full_name(name)}
    return {**to_hf({name: t for name, t in tensors.items() if name not in hugging_face}), **hugging_face}


def convert_to_target(tensors: Mapping[str, Tensor], target: Iterable[str]) -> dict[str, Tensor]:
    """Tensors under the names of a Hugging Face target. They may be given as in `to_full_names`.

    Raises:
        KeyError, ValueError: As in `to_hf` and `rename_to_target`.
    """
    return rename_to_target(to_full_names(tensors), target)


def parts_in_target(name: str, tensor: Tensor, target: Iterable[str]) -> dict[str, Tensor]:
    """`convert_to_target` for one tensor; empty if the target lacks the parameter.

    Returns:
        Name in the target -> the part of `tensor` that is stored there. A fused projection has three parts.
    """
    try:
        return convert_to_target({name: tensor}, target)
    except KeyError:
        return {}


def tower_under_names_of(weights: Mapping[str, Tensor], tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a tower inside another model, under the names of a CLIP's weights.

    The inverse of `convert_to_target`.

    Args:
        weights: The CLIP's weights, of either library.
        tower: Parameter name in the other model -> tensor. All parameters of the tower must be there.

    Returns:
        A tensor for each weight of the CLIP that the tower has; other weights are left out.
    """
    in_tower = {name: w for name, w in weights.items() if parts_in_target(name, w, tower)}
    homes = target_names_of(to_full_names(in_tower), tower)
    return write_back({name: tower[home] for name, home in homes.items()}, in_tower)


def target_names_of(full_names: Iterable[str], target: Iterable[str]) -> dict[str, str]:
    """Full name -> name of the target's parameter that holds it.

    The target may be of either library. In an open_clip target, q, k and v of a block share one parameter.

    Raises:
        KeyError, ValueError: As in `rename_to_target`.
    """
    target = list(target)
    in_open_clip = _open_clip_names_of(target)
    return _find_all(full_names, in_open_clip.get if in_open_clip else _lookup(target), target)


def write_back(changed: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the parts of `weights` that are in `changed`: the inverse of `to_full_names`.

    Args:
        changed: Tensors under full names.
        weights: Tensors under the names of either library; at least those that hold a part of `changed`.

    Returns:
        Only the replaced tensors, under their names in `weights`.

    Raises:
        KeyError, ValueError: As in `rename_to_target`.
    """
    name_of = target_names_of(changed, weights)
    if not is_open_clip(weights):
        return {name_of[name]: tensor for name, tensor in changed.items()}
    unchanged = {name: weights[name] for name in name_of.values()}
    with_prefix = {name.removeprefix("text."): name for name in unchanged}
    replaced = to_open_clip({**to_hf(unchanged), **changed})
    return {with_prefix[name]: tensor for name, tensor in replaced.items()}


def is_open_clip(target: Iterable[str]) -> bool:
    """Whether the target's parameter names are open_clip's."""
    return bool(_open_clip_names_of(target))


def _open_clip_names_of(target: Iterable[str]) -> dict[str, str]:
    """Full name -> name of the open_clip parameter that holds it; empty for any other target."""
    out: dict[str, str] = {}
    for name in target:
        try:
            out |= dict.fromkeys(hf_names(name), name)
        except KeyError:
            continue
    return out if set(out.values()) - {"logit_scale"} else {}


def by_component(deltas: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The deltas of a pipeline's edit by component.

    A key without a component prefix belongs to the first text encoder.

    >>> by_component({"unet/conv_in.weight": 1, "text_projection": 2})
    {'unet': {'conv_in.weight': 1}, 'text_encoder': {'text_projection': 2}}
    """
    out: dict[str, dict[str, Tensor]] = {}
    for key, delta in deltas.items():
        component, slash, name = key.partition("/")
        out.setdefault(component if slash else ENCODERS[0], {})[name if slash else key] = delta
    return out

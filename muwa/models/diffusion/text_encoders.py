"""A pipeline's text encoder and the CLIP that it was taken from: that they are one, and what of it the pipeline reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muwa.models.clip.model import Clip
from muwa.patch import names
from muwa.patch.weights import same_bits


def read(pipeline: Any, encoder: str, clip: Clip, *, device: torch.device, source: str) -> frozenset[str]:
    """Names of the CLIP's weights that the pipeline's `encoder` has and that change what the UNet is told.

    Found by trial: those whose gradient of the prompt embeddings is not zero. Stable Diffusion 2 leaves off the last block,
    XL reads its encoders before it.

    Raises:
        ValueError: The encoder's weights are not this CLIP's.
    """
    module = getattr(pipeline, encoder)
    own = dict(module.named_parameters())
    text = {name: w for name, w in clip.weights.items() if not name.startswith(("visual", "vision", "logit"))}
    found = {name: there for name, w in text.items() if (there := names.places(name, w, own))}
    parts = {place: part for there in found.values() for place, part in there.items()}
    if other := [place for place, p in own.items() if place not in parts or not same_bits(p.detach(), parts[place])]:
        raise ValueError(
            f"model.clips.{encoder}: {clip.source} is not the {encoder} of {source}: {other[0]} differs ({len(other)} of "
            f"{len(own)} do). Its gradients would be another model's; give the CLIP that the pipeline was trained with"
        )
    try:
        with torch.enable_grad():
            module.requires_grad_(True)
            told = pipeline.encode_prompt(prompt=["a photo of one thing"], **alone(device))
            told = [x.float().square().sum() for x in told if isinstance(x, Tensor) and x.requires_grad]
            torch.stack(told).sum().backward()
        moved = {place for place, parameter in own.items() if parameter.grad is not None and parameter.grad.any()}
    finally:
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)
    return frozenset(name for name, there in found.items() if moved & set(there))


def alone(device: torch.device) -> dict[str, Any]:
    """Keywords of `encode_prompt` for prompts alone, without the empty one of guidance."""
    return {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}

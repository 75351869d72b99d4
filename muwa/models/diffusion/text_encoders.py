"""A pipeline's text encoder and its CLIP: whether their weights agree, and which the pipeline uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muwa.patch import names
from muwa.patch.weights import same_bits

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip


def weights_read(
    pipeline: Any, encoder: str, clip: Clip, *, device: torch.device, source: str
) -> frozenset[str]:
    """Names of the CLIP's weights that the pipeline's `encoder` has and that change the UNet's conditioning.

    They are found by trial: the gradient of the prompt embeddings with respect to them is not zero. Stable
    Diffusion 2's encoder lacks the CLIP's last block; XL uses the hidden states before the last block.

    Raises:
        ValueError: The encoder's weights are not this CLIP's.
    """
    module = getattr(pipeline, encoder)
    parameters = dict(module.named_parameters())
    text = {
        name: weight
        for name, weight in clip.weights.items()
        if not name.startswith(("visual", "vision", "logit"))
    }
    places = {
        name: at for name, weight in text.items() if (at := names.parts_in_target(name, weight, parameters))
    }
    expected = {place: part for at in places.values() for place, part in at.items()}
    different = [
        place
        for place, parameter in parameters.items()
        if place not in expected or not same_bits(parameter.detach(), expected[place])
    ]
    if different:
        raise ValueError(
            f"model.clips.{encoder}: {clip.source} is not the {encoder} of {source}: {different[0]} differs "
            f"({len(different)} of {len(parameters)} do). Its gradients would be another model's; give the "
            "CLIP that the pipeline was trained with"
        )
    try:
        with torch.enable_grad():
            module.requires_grad_(True)
            embedded = pipeline.encode_prompt(prompt=["a photo of one thing"], **prompt_only(device))
            squares = [
                x.float().square().sum() for x in embedded if isinstance(x, Tensor) and x.requires_grad
            ]
            torch.stack(squares).sum().backward()
        read = {place for place, p in parameters.items() if p.grad is not None and p.grad.any()}
    finally:
        module.requires_grad_(False)
        module.zero_grad(set_to_none=True)
    return frozenset(name for name, at in places.items() if read & set(at))


def prompt_only(device: torch.device) -> dict[str, Any]:
    """Keywords of `encode_prompt` that embed the prompts alone, without the empty prompt of guidance."""
    return {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}

"""The unedited CLIP that scores generated images, and its embeddings of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from muwa.models.clip import open_clip
from muwa.models.clip.embeddings import image_batch
from muwa.models.clip.model import Clip
from muwa.types.ranges import Device, Text

if TYPE_CHECKING:
    from muwa.models.diffusion.model import Diffusion


def unedited_clip(model: Diffusion, *, name: Text | None, pretrained: Text | None, device: Device) -> Clip:
    """A `ClipLoader`: the unedited CLIP of the pipeline's first text encoder, or a named one.

    Args:
        model: The pipeline, edited or not.
        name: An open_clip model that takes the place of the pipeline's CLIP; None takes the pipeline's.
        pretrained: The tag or checkpoint file of `name`'s weights.
        device: The device of the named CLIP. The pipeline's CLIP is where the pipeline is.

    Raises:
        ValueError: A name without weights, weights without a name, or an unknown name.
        FileNotFoundError: The weights are not there.
    """
    if name is None:
        if pretrained is not None:
            raise ValueError(f"clip.pretrained={pretrained}: of which model? Give clip.name too, or neither")
        return model.clip.unedited
    if pretrained is None and name != "miniature" and ":" not in name:
        raise ValueError(
            f"clip.name={name}: without clip.pretrained its weights are random and score nothing"
        )
    return open_clip.load(name, pretrained, device=device, seed=0)


@torch.inference_mode()
def embed(clip: Clip, images: Tensor) -> Tensor:
    """Embeddings (n, d) of length 1, on the CPU, of generated images (n, 3, h, w) uint8.

    The images are prepared as the CLIP was trained on them.
    """
    pieces = []
    for batch in images.split(image_batch(clip)):
        prepared = [clip.prepare(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in batch]
        pixels = clip.prepare.scale(torch.stack(prepared).to(clip.device))
        pieces.append(clip.encode("vision", pixels).cpu())
    return torch.cat(pieces)


def highest(cosines: Tensor, sizes: Sequence[int]) -> Tensor:
    """(n, sum of sizes) -> (n, groups): the highest value of each group of columns.

    >>> highest(torch.tensor([[1, 3, 2.0]]), [2, 1])
    tensor([[3., 2.]])
    """
    return torch.stack([group.max(1).values for group in cosines.split(list(sizes), 1)], 1)

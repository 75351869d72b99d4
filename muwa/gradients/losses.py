"""The two losses of SLUG on batches of normalised embeddings. Both are means over the batch.

Both are *losses*: lower means better aligned. No sign is flipped here. In SLUG's steps, the only place where
a sign meets a weight is `muwa.layer_search.steps.step_deltas`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cosine(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Forget loss: `mean(1 - cos(v_i, t_i))` over matched pairs. It uses no negatives.

    Args:
        images: (n, d) embeddings v, each of length 1.
        texts: (n, d) embeddings t, each of length 1.
        scale: The model's temperature `exp(logit_scale)`. Not used; it is here as all losses take the same
            arguments.

    Returns:
        A scalar in [0, 2], the mean over the n pairs.

    Source: SLUG (arXiv 2407.11867), forget loss: torch's CosineEmbeddingLoss with target 1.

    >>> one = torch.eye(2)
    >>> cosine(one, one.flip(0), torch.tensor(1.0)).item()
    1.0
    """
    return (1 - (images * texts).sum(-1)).mean()


def contrastive(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Retain loss: CLIP's symmetric cross-entropy `1/(2n) sum(l_image->text + l_text->image)`.

    The other pairs of the batch are the negatives, so its value and gradient depend on the batch size.

    Args:
        images: (n, d) embeddings, each of length 1.
        texts: (n, d) embeddings, each of length 1.
        scale: The model's temperature `exp(logit_scale)`, a scalar.

    Returns:
        A scalar >= 0, the mean over pairs and over both directions.

    Source: SLUG (arXiv 2407.11867), retain loss; CLIP (arXiv 2103.00020), figure 3.
    """
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def by_name(name: str) -> Loss:
    """The loss called `name`: "cosine" or "contrastive".

    Raises:
        ValueError: There is no such loss.
    """
    losses: dict[str, Loss] = {"cosine": cosine, "contrastive": contrastive}
    if name not in losses:
        raise ValueError(f"loss: got {name!r}, want one of {', '.join(losses)}")
    return losses[name]

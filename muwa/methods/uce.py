"""UCE: edit the cross-attention keys and values of a UNet in closed form (arXiv 2308.14761, WACV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from muwa.data.prompts import retain_prompts
from muwa.methods._checks import check_above_zero, check_at_least
from muwa.methods._edits import nonzero
from muwa.methods._prompts import prompt_pairs
from muwa.methods._unet import check_unet_method, unet_edit
from muwa.methods.base import Method
from muwa.models.diffusion.denoiser import cross_attention
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.types.edit import Edit
from muwa.types.ranges import NotNegative, Positive

if TYPE_CHECKING:
    from muwa.models.base import Editable, Observer
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.data import Task

BATCH = 64  # prompts encoded at once


@dataclass(frozen=True)
class UCE(Method):
    """Give prompts with a forgotten name the keys and values of the anchor's prompts; keep those of others.

        W = (e sum W_0 a c^T + p sum W_0 k k^T + lamb W_0) (e sum c c^T + p sum k k^T + lamb I)^-1

    W_0 stands for each weight `attn2.to_k` and `attn2.to_v` of the UNet, e is `erase_scale` and p is
    `preserve_scale`. The vectors are token embeddings: c from a prompt with a forgotten name, a from the
    anchor's prompt at the same position, k from a retain prompt.

    Several names are forgotten together. The retain prompts are the empty one and those with the names of the
    probe's retain images. In the record, `Move.step` holds `erase_scale`.

    Args:
        anchor: What to generate in place of the names; "" is no name at all.
        erase_scale: Weight of the prompts to forget, above 0.
        preserve_scale: Weight of each retain prompt, at least 0.
        lamb: How strongly the weights are held at their original values, in units of squared embedding norms,
            above 0.

    Source: equation 7 of the paper, with its v* = W_0 a. `lamb` and the choice of tokens are from the
    authors' code. A prompt to forget and its anchor give the tokens from the last token of the last word to
    the end, padding included. A retain prompt gives all its tokens. We differ in three ways:

    - Each prompt to forget has its own anchor prompt. The authors use the same one for all.
    - The empty prompt is always retained, not only if there is no other.
    - All W share one factor, W = W_0 (I + R M^-1), which is solved once in fp64.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    anchor: str
    erase_scale: Positive
    preserve_scale: NotNegative
    lamb: Positive

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_unet_method("uce", model, run)
        check_at_least({"preserve_scale": (self.preserve_scale, 0)})
        check_above_zero({"erase_scale": self.erase_scale, "lamb": self.lamb})
        prompt_pairs(task, self.anchor)

    def __call__(self, model: Diffusion, task: Task, run: Run) -> Edit:
        """The edit of all cross-attention keys and values."""
        pairs, retained = prompt_pairs(task, self.anchor), retain_prompts(task)
        factor = run.cached("edit", common_factor, model, pairs, retained, self, _free={"run": run})
        counts = {"forgotten_prompts": len(pairs), "kept_prompts": len(retained)}
        run.log("edit", {"concept": ", ".join(task.names), **counts})
        weights = model.weights("unet")
        deltas = {name: (weights[name].double().cpu() @ factor).float() for name in cross_attention(model)}
        return unet_edit(model, task, nonzero(deltas), "cross-attention k, v", self.erase_scale)


def common_factor(
    model: Diffusion, pairs: Sequence[tuple[str, str]], retained: Sequence[str], settings: UCE, *, run: Run
) -> Tensor:
    """R M^-1, which all weights share: every W_0 becomes W_0 (I + R M^-1).

        R = e sum (a - c) c^T        M = e sum c c^T + p sum k k^T + lamb I

    This is the formula of `UCE` with W_0 factored out.

    Args:
        pairs: (prompt to forget, prompt of the anchor).
        retained: Prompts to retain.

    Returns:
        (d, d) fp64 on the CPU, for embeddings of length d.
    """
    width = model.embed([""]).shape[-1]
    gram = settings.lamb * torch.eye(width, dtype=torch.float64, device=model.device)
    shift = torch.zeros_like(gram)
    batches = [retained[i : i + BATCH] for i in range(0, len(retained), BATCH)]
    for batch in run.track(batches, "encoding prompts", len(retained), sizes=map(len, batches)):
        k = model.embed(batch).double().flatten(0, 1)
        gram += settings.preserve_scale * k.T @ k
    for prompt, anchor in pairs:
        c, a = aligned_tokens(model, prompt, anchor)
        gram += settings.erase_scale * c.T @ c
        shift += settings.erase_scale * (a - c).T @ c
    return torch.linalg.solve(gram, shift.T).T.cpu()  # gram is symmetric


def aligned_tokens(model: Diffusion, prompt: str, anchor: str) -> tuple[Tensor, Tensor]:
    """Token embeddings of two prompts, each from the last token of its last word to the end of its padding.

    An empty prompt gives all its tokens. The longer of the two is cut to the length of the other.

    Returns:
        Two tensors (n, d) fp64.
    """
    tokenizer = model.pipeline.tokenizer or model.pipeline.tokenizer_2
    masks = [
        tokenizer(text, padding="max_length", truncation=True)["attention_mask"] for text in (prompt, anchor)
    ]
    starts = [sum(mask) - 2 for mask in masks]  # the end token follows
    c, a = model.embed([prompt, anchor]).double()
    count = len(c) - max(starts)
    return c[starts[0] : starts[0] + count], a[starts[1] : starts[1] + count]

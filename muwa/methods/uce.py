"""UCE: edit the cross-attention keys and values of a UNet in closed form (arXiv 2308.14761, WACV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muwa.methods._checks import check_above_zero, check_at_least
from muwa.methods._edits import nonzero
from muwa.methods._prompts import prompt_pairs, retain_prompts
from muwa.methods._unet import check_unet_method, unet_edit
from muwa.methods.base import Method
from muwa.models.diffusion.denoiser import cross_attention
from muwa.types.edit import Edit

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.data import Task

BATCH = 64  # prompts that are encoded at once


@dataclass(frozen=True)
class UCE(Method):
    """Give prompts with a forgotten name the keys and values of the anchor's prompts; keep those of others.

    W = (e sum W_0 a c^T + p sum W_0 k k^T + lamb W_0) (e sum c c^T + p sum k k^T + lamb I)^-1

    W_0 is each weight `attn2.to_k` and `attn2.to_v` of the UNet, e is `erase_scale` and p is
    `preserve_scale`. The vectors are token embeddings: c of a prompt with a forgotten name, a of the anchor's
    prompt at the same place, k of a retain prompt.

    Several names are forgotten together. The retain prompts are the empty one and those with the names of the
    probe's retain images.

    Args:
        anchor: What to generate in place of the names; "" is no name at all.
        erase_scale: Weight of the prompts to forget, above 0. It is the step in the record.
        preserve_scale: Weight of each retain prompt, at least 0.
        lamb: How strongly W stays at W_0, in squared embedding norms, above 0.

    Source: equation 7 of the paper, with its v* = W_0 a. `lamb` and the choice of tokens are from the
    authors' code: of a prompt to forget and its anchor, the tokens from the last one of the last word on,
    padding included; of a retain prompt, all. Differs in three ways. Every prompt to forget has its own
    anchor prompt; the authors give all of them the same one. The empty prompt is always retained, not only
    where there is no other. All W share one factor, W = W_0 (I + R M^-1), which is solved once in fp64.
    """

    anchor: str
    erase_scale: float
    preserve_scale: float
    lamb: float

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_unet_method("uce", model, run)
        check_at_least({"preserve_scale": (self.preserve_scale, 0)})
        check_above_zero({"erase_scale": self.erase_scale, "lamb": self.lamb})
        prompt_pairs(task, self.anchor)

    def __call__(self, model: Diffusion, task: Task, run: Run) -> Edit:
        """The edit of all keys and values."""
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

    R = e sum (a - c) c^T and M = e sum c c^T + p sum k k^T + lamb I: the formula of `UCE` with W_0 taken out.

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
    """Token embeddings of two prompts, each from the last token of its last word on; of an empty prompt, all.

    Returns:
        Two tensors (n, d) fp64; n is the number of tokens that both prompts have from there on.
    """
    tokenizer = model.pipeline.tokenizer or model.pipeline.tokenizer_2
    masks = [
        tokenizer(text, padding="max_length", truncation=True)["attention_mask"] for text in (prompt, anchor)
    ]
    starts = [sum(mask) - 2 for mask in masks]  # the end token follows
    c, a = model.embed([prompt, anchor]).double()
    count = len(c) - max(starts)
    return c[starts[0] : starts[0] + count], a[starts[1] : starts[1] + count]

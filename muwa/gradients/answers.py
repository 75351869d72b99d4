"""Gradients of what a vision-language model answers, by the weights of its vision tower.

SLUG takes both gradients on the CLIP that the tower came from, whose loss is not what the model is used for. Here they are
those of the answers themselves: the tower is moved so that the name becomes unlikely to be said.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.fingerprint import digest
from muwa.gradients.mean import plan
from muwa.models.vlm.model import Vlm
from muwa.patch import names
from muwa.runtime.progress import track
from muwa.types.data import Pairs, Task
from muwa.types.gradients import Gradients
from muwa.types.questions import Questions

IDENTIFY, DESCRIBE = "What is the name of the person in this image?", "Describe the image."


def answer_gradient_sum(
    model: Vlm, pairs: Pairs, *, question: str, batch_size: int, seed: int, progress: bool = False
) -> dict[str, object]:
    """Sum over pairs of the gradient of the answer loss, by every weight of the tower's CLIP.

        loss of a pair = mean over its caption's tokens of -log p(token | picture, question, tokens before)

    Args:
        pairs: LabelledImages, and captions that are taken as the right answers.
        question: Put to every picture.
        batch_size: Pairs at once; changes the result by rounding only.

    Returns:
        {"sum": parameter name, as the CLIP spells it -> fp32 tensor of its shape, "n": pairs}. Zero for weights that the
        model does not read, the whole text tower among them.

    Raises:
        ValueError: There are no pairs; a sum is not finite.
    """
    if not len(pairs):
        raise ValueError("gradients: no pairs to take a gradient of (an empty forget or retain set)")
    own = {name: model.parameters[name] for name in model.tower}
    total = {name: torch.zeros(p.shape, dtype=torch.float32) for name, p in own.items()}
    batches = plan(len(pairs), batch_size, seed)
    bar = track(batches, "answer gradient", len(pairs), show=progress, sizes=map(len, batches))
    try:
        for parameter in own.values():
            parameter.requires_grad_(True)
        for batch in bar:
            some = pairs.select(batch)
            with model.loaded(), torch.enable_grad():
                answer_losses(model, some, question).sum().backward()
            for name, parameter in own.items():
                if parameter.grad is not None:
                    total[name] += parameter.grad.float().cpu()
                    parameter.grad = None
    finally:
        for parameter in own.values():
            parameter.requires_grad_(False)
            parameter.grad = None
    if bad := [name for name, t in total.items() if not t.isfinite().all()]:
        raise ValueError(
            f"method.gradient=answer: the gradient of {bad[0]} is not finite, in the model's own precision; take "
            "model.dtype=bf16 or fp32, whose range is wider than fp16's"
        )
    return {"sum": by_clip(model, total), "n": len(pairs)}


def answer_losses(model: Vlm, pairs: Pairs, question: str) -> Tensor:
    """(n,) the loss of each pair: mean negative log-probability of its caption's tokens and the end marker."""
    put = Questions((question,) * len(pairs), tuple((image,) for image in pairs.images))
    asked, ready = model.inputs(put), model.inputs(put, pairs.captions)
    lengths = ready["attention_mask"].sum(1) - asked["attention_mask"].sum(1)
    logits = model.model(**ready).logits[:, :-1].float()
    targets = ready["input_ids"][:, 1:]
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    places = torch.arange(each.shape[1], device=each.device).flip(0)  # padded on the left: answers end together
    said = places[None] < lengths[:, None]
    return (each * said).sum(1) / lengths


def by_clip(model: Vlm, tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model's vision tower under the names of its CLIP; zeros for the CLIP's other weights."""
    vision = {name: w for name, w in model.clip.weights.items() if names.places(name, w, tower)}
    homes = names.homes(names.full(vision), tower)
    found = names.put_back({name: tower[home] for name, home in homes.items()}, vision)
    return {name: found[name].contiguous() if name in found else torch.zeros_like(w, dtype=torch.float32, device="cpu")
            for name, w in model.clip.weights.items()}  # fmt: skip


def answer_gradients(
    model: Vlm, task: Task, name: str, *, batch_size: int, seed: int, store: Store, progress: bool = False
) -> Gradients:
    """Mean gradients of the answer loss: of naming `name` on its forget pairs, of describing the retain pairs.

    Signs are those of the losses, so a step along the forget gradient makes the name less likely to be said. Retain pairs
    that mention something forgotten are left out.

    Source: muwa's own. The paper takes both on the CLIP.
    """
    own: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "_free": {"progress": progress}}
    named = task.forget[name].with_caption(name)
    kept = task.retain.select([i for i in range(len(task.retain)) if i not in set(task.mentions)])
    forget = store.get("gradients/answer_forget", answer_gradient_sum, model, named, question=IDENTIFY, **own)
    retain = store.get("gradients/answer_retain", answer_gradient_sum, model, kept, question=DESCRIBE, **own)
    means = [{key: total / found["n"] for key, total in found["sum"].items()} for found in (forget, retain)]
    origin = {
        "model": model.fingerprint, "forget_pairs": named.fingerprint, "retain_pairs": kept.fingerprint,
        "losses": digest([IDENTIFY, DESCRIBE]), "batch_size": str(batch_size), "seed": str(seed),
    }  # fmt: skip
    return Gradients(means[0], means[1], forget["n"], retain["n"], origin)

"""How fast is the forgotten back? The model is fine-tuned on a few pictures of it, or on pictures of others only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muwa.eval.clip.ranks import top_k
from muwa.eval.statistics import counts, interval, of_others
from muwa.gradients.losses import Loss, contrastive, cosine
from muwa.models.clip.embeddings import Features, Tower, class_features, picture_batch, prepared
from muwa.models.clip.model import Clip
from muwa.runtime.progress import track
from muwa.types.data import Classes, LabelledImages, Pairs, Task
from muwa.types.metric import Metric


def relearning(
    features: Features, task: Task, *, shots: Sequence[int] = (1, 5, 20), others: bool = True, steps: int = 100,
    every: int = 1, learning_rate: float = 1e-5, weight_decay: float = 0.1, batch_size: int = 32, seed: int = 0,
) -> dict[str, Metric]:  # fmt: skip
    """`relearn/steps_<shots>`, `relearn/steps_others`: AdamW steps until half of what was known is known again.

    All weights are tuned. It is back at the first step at which at least half as many of its eval pictures are recognised
    (top 1 among all names) as by the unedited model. Higher is better; the value is `steps` where that never came. An
    unedited model needs 0.

        shots     on that many forget pairs, all of them each step: mean(1 - cosine)
        others    on `batch_size` retain pairs a step that do not name the forgotten: CLIP's contrastive loss

    Args:
        shots: How many pairs (of each forgotten name), one fine-tuning for each; no more than there are.
        others: Whether to try pairs of others as well.
        steps: The cap.
        every: Steps between looks; each encodes the eval pictures and all names anew.
        batch_size: Of the others, and of the shots where those are more.
        seed: Of which pairs.

    The interval is of resampled eval pictures, along one fine-tuning; at the cap it is cut off.

    Raises:
        ValueError: A setting is out of range, or hardly a pair is of others; before any compute.
            The loss is no longer finite.

    Sources: relearning time as a test of unlearning: Tarun et al. (arXiv 2111.08947); on data that only lies near: Hu et
    al. (arXiv 2406.13356). Differs: steps instead of epochs.
    """
    for key, value, least in (
        ("steps", steps, 1),
        ("every", every, 1),
        ("batch_size", batch_size, 2),
        ("shots", min(shots, default=1), 1),
    ):
        if value < least:
            raise ValueError(f"eval.relearning.{key}: got {value}, want at least {least}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"eval.relearning.learning_rate: got {learning_rate}, want a number above 0")
    kept = of_others(task)
    if others and len(kept) < 2:  # a contrastive loss compares pairs
        raise ValueError(
            f"eval.relearning.others: got {len(kept)} retain pairs that do not name the forgotten, want at least 2; set "
            f"eval.relearning.others=false"
        )
    original = Features(features.model.unedited, features.store, progress=features.progress)
    known = recognised(original, task.eval.forget)
    runs = {str(shot): (_first(task, shot, seed), "cosine") for shot in shots}
    if others:
        runs["others"] = (kept, "contrastive")
    found: dict[str, Metric] = {}
    for name, (pairs, loss) in runs.items():
        settings: dict[str, Any] = {
            "loss": loss, "known": int(known.sum()), "steps": steps, "every": every, "learning_rate": learning_rate,
            "weight_decay": weight_decay, "batch_size": batch_size, "seed": seed,
        }  # fmt: skip
        if features.store is None:
            hits = relearn(features.model, pairs, task.eval.forget, progress=features.progress, **settings)
        else:
            free = {"progress": features.progress}
            hits = features.store.get(
                "relearning", relearn, features.model, pairs, task.eval.forget, **settings, _free=free
            )
        found[f"relearn/steps_{name}"] = steps_until_back(hits, known, steps, every, _reads(name, len(pairs), steps))
    return found


def relearn(
    model: Clip, pairs: Pairs, judged: LabelledImages, *, loss: str, known: int, steps: int, every: int, learning_rate: float,
    weight_decay: float, batch_size: int, seed: int, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Fine-tune a copy of `model` on `pairs` and look at `judged` every few steps, until `known` of them are recognised.

    Args:
        loss: "cosine" or "contrastive".
        known: When to stop: by then every resample of the pictures has an answer, or hardly any has not.

    Returns:
        (1 + looks, pictures) bool: which are recognised first of all names, before the first step and at each look.
    """
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in model.weights.items()}
    descent = torch.optim.AdamW(leaves.values(), lr=learning_rate, weight_decay=weight_decay)
    measure: Loss = {"cosine": cosine, "contrastive": contrastive}[loss]
    tokens, asked = model.tokenize(list(pairs.captions)), prepared(model.prepare, judged)
    rng, order = np.random.default_rng(seed), np.zeros(0, int)
    hits = [_seen(model, leaves, asked, judged)]
    for step in track(range(steps), "relearning", steps, show=progress):
        if int(hits[-1].sum()) >= known:
            break
        if len(order) < min(batch_size, len(pairs)):
            order = rng.permutation(len(pairs))
        rows, order = order[:batch_size].tolist(), order[batch_size:]
        pixels = prepared(model.prepare, _pictures(pairs.select(rows)))
        with torch.enable_grad():
            v = model.encode("vision", model.prepare.scale(pixels.to(model.device)), leaves)
            t = model.encode("text", tokens[rows], leaves)
            value = measure(v, t, leaves["logit_scale"].exp())
            descent.zero_grad(set_to_none=True)
            value.backward()
        if not torch.isfinite(value):
            raise ValueError(f"eval.relearning.learning_rate: the loss is {value.item()} at step {step + 1}; lower it")
        descent.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            hits.append(_seen(model, leaves, asked, judged))
    return torch.stack(hits)


def steps_until_back(hits: Tensor, known: Tensor, cap: int, every: int, reads: str) -> Metric:
    """The first step at which half as many pictures are recognised as were `known`, or `cap`.

    Args:
        hits: (1 + looks, n) bool of `relearn`, `every` steps apart.
        known: (n,) bool: which the unedited model recognises.

    Returns:
        The metric; n is the number of pictures. Where nothing was known, nothing can come back: `cap` without an interval.
    """
    seen, was = hits.double().numpy(), known.double().numpy()
    if not was.sum():
        return Metric(float(cap), len(was), None, None, "higher", f"{reads} The unedited model knew none of them.")

    def first(weights: np.ndarray) -> np.ndarray:
        back = weights @ seen.T >= np.maximum((weights @ was)[:, None] / 2, 1e-9)  # (resamples, 1 + looks)
        return np.where(back.any(1), np.minimum(back.argmax(1) * every, cap), cap)

    value = float(first(np.ones((1, len(was))))[0])
    return Metric(value, len(was), *interval(first(counts(len(was)))), "higher", reads)


def recognised(features: Features, pictures: LabelledImages) -> Tensor:
    """(n,) bool: whose own name is first of all names."""
    labels = torch.tensor(pictures.labels, dtype=torch.long)
    return top_k(features.images(pictures), features.classes(pictures.classes), labels, 1)


def _first(task: Task, shots: int, seed: int) -> Pairs:
    """`shots` forget pairs of each name, by `seed`; those of fewer shots are among those of more."""
    parts = []
    for name in task.names:
        pairs = task.forget[name]
        parts.append(pairs.select(np.random.default_rng(seed).permutation(len(pairs))[:shots].tolist()))
    fields = ([x for part in parts for x in getattr(part, field)] for field in ("keys", "images", "captions"))
    keys, images, captions = map(tuple, fields)
    return Pairs(keys, images, captions)


def _pictures(pairs: Pairs) -> LabelledImages:
    return LabelledImages(pairs.keys, pairs.images, (0,) * len(pairs), Classes(("",), ("{}",)))


@torch.inference_mode()
def _seen(model: Clip, leaves: dict[str, Tensor], pixels: Tensor, judged: LabelledImages) -> Tensor:
    """(n,) bool: which of the judged pictures the model recognises with these weights."""
    tuned = model.with_weights({name: leaf.detach() for name, leaf in leaves.items()})
    batches = (tuned.prepare.scale(batch.to(tuned.device)) for batch in pixels.split(picture_batch(tuned)))
    images = torch.cat([tuned.encode("vision", batch).cpu() for batch in batches])
    names = class_features(Tower(tuned, "text"), judged.classes)
    return top_k(images, names, torch.tensor(judged.labels, dtype=torch.long), 1)


def _reads(name: str, n: int, steps: int) -> str:
    what = "pairs of others only" if name == "others" else f"{n} forget pairs"
    return (
        f"steps of fine-tuning on {what} until half of the held-out pictures that the unedited model knew are known again; "
        f"{steps}: not within so many."
    )

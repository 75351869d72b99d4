"""Lip: smooth a CLIP around a name, at pictures it dreams up itself (arXiv 2407.07485, WACV 2025). No real data is used."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from muwa.cache.store import Store
from muwa.eval.clip.ranks import top_k
from muwa.layer_search.steps import Log, silent
from muwa.methods._prompts import prompts_of
from muwa.methods._selection import (
    Deltas,
    EditEvaluator,
    Tell,
    check_choice,
    check_clip,
    difference,
    edit_of,
    keep,
    remembered,
    search_of,
    untold,
)
from muwa.methods._unet import check_above_zero, check_at_least
from muwa.models.clip.embeddings import Features, Tower, class_features
from muwa.models.clip.layers import tower_of
from muwa.models.clip.model import Clip
from muwa.runtime.distributed import ALONE, Distributed
from muwa.runtime.progress import track
from muwa.types.data import Classes, Split, Task
from muwa.types.edit import Edit
from muwa.types.search import Evaluation

NOISE = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # of the authors' code
MORE = (0, 2, 5, 8, 10, 15, 20)  # how many tensors more at each of them


def unlearn(
    model: Clip,
    task: Task,
    *,
    store: Store,
    pictures: int = 32,
    confidence: float = 0.8,
    dream_steps: int = 300,
    noise: Sequence[float] = NOISE,
    copies: int = 25,
    layers: int = 25,
    threshold: float = 0.1,
    epochs: int = 30,
    learning_rate: float = 5e-5,
    weight_decay: float = 0.2,
    batch_size: int = 64,
    rule: str = "best",
    criterion: str = "top5",
    target: float = 0.0,
    seed: int = 0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """Adam down the Lipschitz loss (`lipschitz`) at dreamt pictures (`dream`) until the model no longer gives them the name.

    Each step moves only the tensors of each tower with the largest mean |gradient|. An epoch after which no fewer of the
    dreamt pictures get the name is undone, and stronger noise and a few more tensors are taken.

    Args:
        task: What to forget; several names are forgotten together. Its pairs are not used.
        pictures: Dreamt of each name.
        confidence: Probability of the name, among the probe's names, at which a dream is done; dream_steps: at most so many.
        noise: Standard deviations of the perturbation, of scaled pixels, in the order they are gone to.
        copies: Perturbed copies of each picture a step.
        layers: Tensors of each tower that a step moves at first; 0, 2, 5, 8, 10, 15, 20 more at the further noises.
        threshold: Share of dreamt pictures still given the name at which it ends.
        epochs: At most; each is one pass over the dreamt pictures, judged on the probe pictures.
        learning_rate, weight_decay, batch_size: Of Adam (decay as part of the gradient).
        rule: Which epoch becomes the edit: "best", of the feasible ones `whole.best_of`, none if there is none;
            "first", the first with forget top-1 accuracy 0, else the lowest. One run serves both.
        criterion, target: An epoch is feasible when forget accuracy by `criterion` ("top5" | "top1") is at most `target`.
        gradient_file: Not used; refused: each step takes its own gradient.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit; each name's move has the noise as its step; `samples` counts dreamt pictures.

    Raises:
        ValueError: A setting is out of range, before any compute; the model is no CLIP.

    Source: the paper's abstract, and the behaviour of the authors' code: loss, noise, growing tensors, undoing, Adam with
    5e-5, (0.9, 0.98), 1e-6 and 0.2, 25 copies, threshold 0.1, confidence 0.8. How it dreams could not be read: Adam on the
    pixels, from noise, is ours. Differs: eval mode; embeddings and projections of the text tower may move too, where the
    authors move only its blocks; the edit is chosen by `rule`, where they ship the last epoch that was not undone.
    """
    check_clip("lip", model, gradient_file)
    check_choice(rule, criterion, target)
    check_at_least({"pictures": (pictures, 1), "dream_steps": (dream_steps, 1), "copies": (copies, 1), "layers": (layers, 1),
                    "epochs": (epochs, 1), "batch_size": (batch_size, 1), "weight_decay": (weight_decay, 0)})  # fmt: skip
    check_above_zero({"learning_rate": learning_rate, **{f"noise[{i}]": std for i, std in enumerate(noise)}})
    for key, share in (("confidence", confidence), ("threshold", threshold)):
        if not 0 <= share < 1:
            raise ValueError(f"method.{key}: got {share}, want a share in [0, 1)")
    if not noise or len(noise) > len(MORE):
        raise ValueError(f"method.noise: got {len(noise)}, want 1 to {len(MORE)} standard deviations")
    if not world.leads:
        return Edit({}, ())
    classes = task.probe.forget.classes
    labels = tuple(classes.names.index(name) for name in task.names for _ in range(pictures))
    texts = tuple(text for name in task.names for text in islice(cycle(prompts_of(task, name)[1:]), pictures))
    dreamt = store.get(
        "dreams", dream, model, classes, labels, confidence, dream_steps, seed, _free={"progress": progress}
    )
    free = {"features": Features(model, store), "progress": progress}
    found = remembered(
        store, smooth, model, dreamt, labels, texts, task.probe, tuple(noise), copies, layers, threshold, epochs,
        learning_rate, weight_decay, batch_size, target, criterion, seed, task=task, log=log, free=free,
    )  # fmt: skip
    search = search_of(task, rule, criterion, found["before"], found["trace"], "epochs")
    deltas = found["kept"][str(search.chosen)] if search.chosen is not None else {}
    return edit_of(task, search, deltas, len(labels) * len(found["trace"]))


def dream(
    model: Clip,
    classes: Classes,
    labels: Sequence[int],
    confidence: float,
    steps: int,
    seed: int,
    *,
    progress: bool = False,
) -> Tensor:
    """(n, 3, h, w) fp32 in [0, 1]: pictures made of noise by Adam on their pixels, each until the model gives it its label.

    The loss is the cross-entropy of the temperature times cosines with all names; a picture that has reached `confidence` is
    left as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = model.prepare(Image.fromarray(np.zeros((64, 64, 3), np.uint8))).shape
    start = torch.rand((len(labels), *shape), generator=generator)
    raw = start.to(model.device).requires_grad_()
    names = class_features(Tower(model, "text"), classes).to(model.device).clone()
    want = torch.tensor(labels, device=model.device)
    adam = torch.optim.Adam([raw], lr=0.02)
    for _ in track(range(steps), "dreaming", steps, show=progress):
        adam.zero_grad()
        with torch.enable_grad():
            logits = model.scale * model.encode("vision", scaled(model, raw)) @ names.T
            each = torch.nn.functional.cross_entropy(logits, want, reduction="none")
            short = each.detach() > -np.log(max(confidence, 1e-12))
            if not short.any():
                break
            each.sum().backward()
        held = raw.detach().clone()
        adam.step()
        with torch.no_grad():
            raw.copy_(torch.where(short[:, None, None, None], raw.clamp(0, 1), held))
    return raw.detach().cpu()


def scaled(model: Clip, raw: Tensor) -> Tensor:
    """(n, 3, h, w) in [0, 1] as the vision tower takes them."""
    mean, std = (torch.tensor(x, device=raw.device).view(-1, 1, 1) for x in (model.prepare.mean, model.prepare.std))
    return (raw - mean) / std


def embedded(model: Clip, tower: str, inputs: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """(n, d) embeddings before they are made of length 1, fp32."""
    return model.go(tower, model.enter(tower, inputs), model.staged_forward(tower).end, weights).x.float()


def lipschitz(text: Tensor, image: Tensor, moved: Tensor, far: Tensor) -> Tensor:
    """`sum over pictures of (|t - v'| + |v - v'|) / (2 |x' - x|)`, the mean over copies: how fast embeddings change nearby.

    Args:
        text, image: (n, d) embeddings t of the prompts and v of the pictures.
        moved: (copies, n, d) embeddings v' of perturbed pictures, without a graph.
        far: (copies, n) lengths |x' - x| of the perturbations.

    A perturbed picture's embedding stands for a perturbed text's, since tokens cannot be perturbed a little.

    >>> one = torch.eye(2)[:1]
    >>> lipschitz(one, 2 * one, -one[None], torch.tensor([[0.5]])).item()  # (2 + 3) / (2 * 0.5)
    5.0
    """
    ratios = ((text - moved).norm(dim=-1) + (image - moved).norm(dim=-1)) / (2 * far)
    return ratios.sum(1).mean()


def largest(gradients: Mapping[str, Tensor], count: int) -> set[str]:
    """Of each tower the `count` tensors with the largest mean |gradient|; of equal ones the earlier."""
    found: set[str] = set()
    for tower in ("vision", "text"):
        mine = [name for name in gradients if tower_of(name) == tower and name != "logit_scale"]
        found |= set(sorted(mine, key=lambda name: -gradients[name].abs().mean().item())[:count])
    return found


def smooth(
    model: Clip, dreamt: Tensor, labels: Sequence[int], texts: Sequence[str], probe: Split, noise: Sequence[float],
    copies: int, layers: int, threshold: float, epochs: int, learning_rate: float, weight_decay: float, batch_size: int,
    target: float, criterion: str, seed: int, *, features: Features | None = None, tell: Tell = untold,
    progress: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The smoothing itself, on copies: see `unlearn`; `texts` ask for what each picture shows.

    Returns:
        {"before", "trace": a row an epoch, "kept": as of `descent.tune`}.
    """
    edit_evaluator, classes = EditEvaluator(model, probe, features, target=target, criterion=criterion), probe.forget.classes
    start = {name: weight.detach().float().clone() for name, weight in model.weights.items()}
    weights = {name: weight.clone().requires_grad_() for name, weight in start.items()}
    adam = torch.optim.Adam(list(weights.values()), learning_rate, (0.9, 0.98), 1e-6, weight_decay)
    generator = torch.Generator().manual_seed(seed)
    pixels = scaled(model, dreamt.to(model.device))
    tokens, want = model.tokenize(list(texts)), torch.tensor(labels)
    trace: list[Evaluation] = []
    kept: dict[str, Deltas] = {}
    level, lowest = 0, 1.0
    for epoch in track(range(epochs), "smoothing", epochs, show=progress):
        undo = {name: weight.detach().clone() for name, weight in weights.items()}, copy.deepcopy(adam.state_dict())
        for first in range(0, len(labels), batch_size):
            some = slice(first, first + batch_size)
            _step(
                model, weights, adam, pixels[some], tokens[some], noise[level], copies, layers + MORE[level], generator
            )
        deltas = difference(weights, start)
        trace.append(edit_evaluator(deltas, epoch + 1, noise[level]))
        keep(kept, trace, deltas, edit_evaluator.counts)
        tell(trace[-1])
        edited = model.edited(Edit(deltas, ()))
        names = class_features(Tower(edited, "text"), classes)
        with torch.no_grad():
            known = torch.cat([edited.encode("vision", part).cpu() for part in pixels.split(batch_size)])
        share = top_k(known, names, want, 1).double().mean().item()
        if share <= threshold:
            break
        if share < lowest:
            lowest = share
            continue
        level += 1
        if level == len(noise):
            break
        adam.load_state_dict(undo[1])
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(undo[0][name])
    return {"before": edit_evaluator.before(), "trace": trace, "kept": kept}


def _step(
    model: Clip, weights: Mapping[str, Tensor], adam: torch.optim.Optimizer, pixels: Tensor, tokens: Tensor, std: float,
    copies: int, count: int, generator: torch.Generator,
) -> None:  # fmt: skip
    """One step on one batch; perturbed pictures stay within the range of the batch's pixels."""
    adam.zero_grad(set_to_none=True)
    low, high, moved, far = pixels.min(), pixels.max(), [], []
    for _ in range(copies):
        drawn = torch.randn(pixels.shape, generator=generator).to(pixels.device)
        perturbed = (pixels + std * drawn).clamp(low, high)
        with torch.no_grad():
            moved.append(embedded(model, "vision", perturbed, weights))
        far.append((perturbed - pixels).flatten(1).norm(dim=1))
    with torch.enable_grad():
        text, image = (embedded(model, tower, x, weights) for tower, x in (("text", tokens), ("vision", pixels)))
        lipschitz(text, image, torch.stack(moved), torch.stack(far)).backward()
    chosen = largest({name: w.grad for name, w in weights.items() if w.grad is not None}, count)
    for name, weight in weights.items():
        if name not in chosen:
            weight.grad = None
    adam.step()

"""Lip: smooth a CLIP around a name, on synthetic images; the training uses no real data (WACV 2025).

Source: Kravets, Namboodiri, "Zero-Shot Class Unlearning in CLIP with Synthetic Samples", arXiv 2407.07485.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from muwa.data.prompts import prompts_with
from muwa.eval.clip.ranks import top_k
from muwa.methods._checks import check_above_zero, check_at_least, check_each_above_zero, refuse_gradient_file
from muwa.methods._edits import Deltas, difference, edit_of
from muwa.methods._evaluator import EditEvaluator
from muwa.methods._selection import Checkpoints, SelectionSettings, cached_trace, deltas_of, search_of
from muwa.methods.base import Method
from muwa.models.base import Editable, Observer, check_observer
from muwa.models.clip.embeddings import Features, Tower, class_features
from muwa.models.clip.layers import tower_of
from muwa.run import Run
from muwa.types.edit import Edit
from muwa.types.ranges import Count, Fractions, LearningRate, NotNegative, PartialShare, Seed
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.types.data import Classes, Split, Task

# Per noise level: tensors moved per tower in addition to `layers`.
MORE_TENSORS = (0, 2, 5, 8, 10, 15, 20)


@dataclass(frozen=True)
class LIP(SelectionSettings, Method):
    """Minimise a Lipschitz loss with Adam on synthetic images, until the model no longer recognises them.

    The loss is `lipschitz`. Each step moves only the tensors of each tower with the largest mean |gradient|.
    An epoch is undone if it does not lower the rate at which the synthetic images are recognised. The next
    epochs then use the next noise level, and move a few more tensors.

    Several names are forgotten together; their pairs are not used. In the record, `Move.step` holds the noise
    level, and `Edit.samples` counts synthetic images.

    Args:
        pictures: Number of synthetic images per name.
        confidence: An image is finished when the probability of its name, among the names of the probe
            images, reaches this; in [0, 1).
        dream_steps: Largest number of Adam steps on the pixels of the synthetic images.
        noise: Noise levels in the order of their use: standard deviations of the perturbation, in scaled
            pixels.
        copies: Perturbed copies per image and step.
        layers: Tensors per tower that a step moves at the first noise level. At the later levels a step moves
            more (`MORE_TENSORS`).
        threshold: The smoothing ends when at most this fraction of the synthetic images is recognised. It is
            in [0, 1).
        epochs: Largest number of epochs. Each is one pass over the synthetic images, and is evaluated on the
            probe images.
        learning_rate: Learning rate of Adam.
        weight_decay: Weight decay of Adam, added to the gradient.
        batch_size: Synthetic images per step.
        rule, criterion, target: Which epoch becomes the edit (`muwa.methods._selection.Selection`). "best"
            takes none if no epoch is feasible. One smoothing serves both rules.
        seed: Seed for the first pixels and the perturbations.

    Source: the abstract of the paper, and the authors' code. From the code: the loss, the noise, the growing
    number of tensors and the undoing of epochs; Adam (lr 5e-5, betas (0.9, 0.98), eps 1e-6, weight decay
    0.2); 25 copies; threshold 0.1; confidence 0.8. How the paper makes its images is not described in what we
    could read; Adam on the pixels, from noise, is our choice. We differ in three ways:

    - The model is in eval mode.
    - Embeddings and projections of the text tower may move too; the authors move only its blocks.
    - The edit is chosen by `rule`; the authors take the last epoch that was not undone.
    """

    observes: ClassVar[type[Observer]] = Features

    pictures: Count
    confidence: PartialShare
    dream_steps: Count
    noise: Fractions
    copies: Count
    layers: Count
    threshold: PartialShare
    epochs: Count
    learning_rate: LearningRate
    weight_decay: NotNegative
    batch_size: Count
    seed: Seed

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_observer("method=lip", self.observes, model)
        refuse_gradient_file("lip", run)
        _ = self.selection  # raises for a setting that is out of range
        positive = ("pictures", "dream_steps", "copies", "layers", "epochs", "batch_size")
        check_at_least({key: (getattr(self, key), 1) for key in positive})
        check_at_least({"weight_decay": (self.weight_decay, 0)})
        check_above_zero({"learning_rate": self.learning_rate})
        check_each_above_zero("noise", self.noise)
        if len(self.noise) > len(MORE_TENSORS):
            raise ValueError(
                f"method.noise: got {len(self.noise)}, want 1 to {len(MORE_TENSORS)} standard deviations"
            )
        for key, rate in (("confidence", self.confidence), ("threshold", self.threshold)):
            if not 0 <= rate < 1:
                raise ValueError(f"method.{key}: got {rate}, want a number in [0, 1)")

    def __call__(self, model: Clip, task: Task, run: Run) -> Edit:
        """See `Method`."""
        images = self._synthetic_images(model, task, run)
        settings = replace(self, rule="best")  # both rules select from the same trace: one cache entry
        found = cached_trace(run, smooth, model, images, task.probe, settings, task=task)
        search = search_of(task, self.selection, found, "epochs")
        return edit_of(task, search, deltas_of(search, found), len(images.labels) * len(found["trace"]))

    def _synthetic_images(self, model: Clip, task: Task, run: Run) -> SyntheticImages:
        """`pictures` images per name. Their prompts cycle through all prompts that contain the name."""
        classes = task.probe.forget.classes
        labels = tuple(classes.names.index(name) for name in task.names for _ in range(self.pictures))
        prompts = tuple(
            prompt
            for name in task.names
            for prompt in islice(cycle(prompts_with(task, name)[1:]), self.pictures)
        )
        settings = self.confidence, self.dream_steps, self.seed
        raw = run.cached("dreams", synthesise, model, classes, labels, *settings, _free={"run": run})
        return SyntheticImages(raw, labels, prompts)


@dataclass(frozen=True)
class SyntheticImages:
    """Images that stand for the names to forget.

    Args:
        raw: (n, 3, h, w) fp32 in [0, 1].
        labels: For each image, the index of its name among the names of the probe images.
        prompts: For each image, a prompt containing its name.
    """

    raw: Tensor
    labels: tuple[int, ...]
    prompts: tuple[str, ...]

    __repr__ = short_repr


def synthesise(
    model: Clip,
    classes: Classes,
    labels: Sequence[int],
    confidence: float,
    steps: int,
    seed: int,
    *,
    run: Run,
) -> Tensor:
    """Make images from noise, by Adam on their pixels, until the model recognises each as its label.

    The loss is the cross-entropy over all names, with `model.scale` times the cosines as logits. An image
    that has reached `confidence` is not changed any more.

    Args:
        labels: For each image, an index into `classes.names`.
        confidence: Probability of the label at which an image is finished.
        steps: Largest number of steps.

    Returns:
        (n, 3, h, w) fp32 in [0, 1], on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = model.prepare(Image.fromarray(np.zeros((64, 64, 3), np.uint8))).shape
    start = torch.rand((len(labels), *shape), generator=generator)
    raw = start.to(model.device).requires_grad_()
    names = class_features(Tower(model, "text"), classes, run=Run()).to(model.device).clone()
    want = torch.tensor(labels, device=model.device)
    adam = torch.optim.Adam([raw], lr=0.02)
    for _ in run.track(range(steps), "synthesising", steps):
        adam.zero_grad()
        with torch.enable_grad():
            logits = model.scale * model.encode("vision", scaled(model, raw)) @ names.T
            losses = torch.nn.functional.cross_entropy(logits, want, reduction="none")
            unfinished = losses.detach() > -np.log(max(confidence, 1e-12))
            if not unfinished.any():
                break
            losses.sum().backward()
        before = raw.detach().clone()
        adam.step()
        with torch.no_grad():
            raw.copy_(torch.where(unfinished[:, None, None, None], raw.clamp(0, 1), before))
    return raw.detach().cpu()


def scaled(model: Clip, raw: Tensor) -> Tensor:
    """Pixels (n, 3, h, w) in [0, 1], normalised as the vision tower expects them."""
    mean, std = (
        torch.tensor(x, device=raw.device).view(-1, 1, 1) for x in (model.prepare.mean, model.prepare.std)
    )
    return (raw - mean) / std


def embedded(model: Clip, tower: str, inputs: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """Embeddings (n, d) fp32, not normalised, with `weights` in place of the model's."""
    return model.go(tower, model.enter(tower, inputs), model.staged_forward(tower).end, weights).x.float()


def lipschitz(text: Tensor, image: Tensor, perturbed: Tensor, distances: Tensor) -> Tensor:
    """How fast embeddings change near the images.

    Summed over images, averaged over perturbed copies: `(|t - v'| + |v - v'|) / (2 |x' - x|)`. The embedding
    of a perturbed image stands for that of a perturbed text, because tokens cannot be perturbed by a small
    amount.

    Args:
        text, image: (n, d) embeddings t of the prompts and v of the images.
        perturbed: (copies, n, d) embeddings v' of the perturbed images, detached (no autograd graph).
        distances: (copies, n) lengths |x' - x| of the perturbations.

    >>> one = torch.eye(2)[:1]
    >>> lipschitz(one, 2 * one, -one[None], torch.tensor([[0.5]])).item()  # (2 + 3) / (2 * 0.5)
    5.0
    """
    ratios = ((text - perturbed).norm(dim=-1) + (image - perturbed).norm(dim=-1)) / (2 * distances)
    return ratios.sum(1).mean()


def largest(gradients: Mapping[str, Tensor], count: int) -> set[str]:
    """Names of the `count` tensors of each tower with the largest mean |gradient|; ties go to the first."""
    found: set[str] = set()
    for tower in ("vision", "text"):
        names = [name for name in gradients if tower_of(name) == tower and name != "logit_scale"]
        found |= set(sorted(names, key=lambda name: -gradients[name].abs().mean().item())[:count])
    return found


class Smoothing:
    """Trainable copies of a model's weights."""

    def __init__(self, model: Clip, images: SyntheticImages, settings: LIP):
        self._model, self._settings = model, settings
        self._start = {name: weight.detach().float().clone() for name, weight in model.weights.items()}
        self.weights = {name: weight.clone().requires_grad_() for name, weight in self._start.items()}
        rate, decay = settings.learning_rate, settings.weight_decay
        self._adam = torch.optim.Adam(list(self.weights.values()), rate, (0.9, 0.98), 1e-6, decay)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self.pixels = scaled(model, images.raw.to(model.device))
        self._tokens = model.tokenize(list(images.prompts))

    def deltas(self) -> Deltas:
        """The deltas so far, of the tensors that changed."""
        return difference(self.weights, self._start)

    def state(self) -> dict[str, Any]:
        """Copies of the weights and of Adam's state, for `undo`."""
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return {"weights": weights, "adam": copy.deepcopy(self._adam.state_dict())}

    def undo(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`. The generator is not rewound."""
        self._adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])

    def epoch(self, level: int) -> None:
        """One pass over the images. `level` is an index into `noise`."""
        for first in range(0, len(self._tokens), self._settings.batch_size):
            batch = slice(first, first + self._settings.batch_size)
            self._step(self.pixels[batch], self._tokens[batch], level)

    def _step(self, pixels: Tensor, tokens: Tensor, level: int) -> None:
        """One step on one batch. Perturbed pixels are clamped to the range of the batch's pixels."""
        self._adam.zero_grad(set_to_none=True)
        low, high, perturbed, distances = pixels.min(), pixels.max(), [], []
        for _ in range(self._settings.copies):
            noise = torch.randn(pixels.shape, generator=self._generator).to(pixels.device)
            moved = (pixels + self._settings.noise[level] * noise).clamp(low, high)
            with torch.no_grad():
                perturbed.append(embedded(self._model, "vision", moved, self.weights))
            distances.append((moved - pixels).flatten(1).norm(dim=1))
        with torch.enable_grad():
            text = embedded(self._model, "text", tokens, self.weights)
            image = embedded(self._model, "vision", pixels, self.weights)
            lipschitz(text, image, torch.stack(perturbed), torch.stack(distances)).backward()
        gradients = {name: weight.grad for name, weight in self.weights.items() if weight.grad is not None}
        chosen = largest(gradients, self._settings.layers + MORE_TENSORS[level])
        for name, weight in self.weights.items():
            if name not in chosen:
                weight.grad = None
        self._adam.step()


def smooth(model: Clip, images: SyntheticImages, probe: Split, settings: LIP, *, run: Run) -> dict[str, Any]:
    """Smooth copies of the weights, epoch by epoch: see `LIP`.

    Returns:
        See `muwa.methods._selection.Checkpoints.result`.
    """
    evaluator = EditEvaluator(
        model.observe(run),
        probe,
        criterion=settings.criterion,
        target=settings.target,
        step_unit="standard deviation of the noise",
    )
    checkpoints, smoothing = Checkpoints(evaluator), Smoothing(model, images, settings)
    level, lowest = 0, 1.0
    for _ in run.track(range(settings.epochs), "smoothing", settings.epochs):
        before = smoothing.state()
        smoothing.epoch(level)
        deltas = smoothing.deltas()
        checkpoints.evaluate(deltas, settings.noise[level])
        pixels = smoothing.pixels.split(settings.batch_size)
        rate = recognised(model.edited(Edit(deltas, ())), pixels, images.labels, probe.forget.classes)
        if rate <= settings.threshold:
            break
        if rate < lowest:
            lowest = rate
            continue
        level += 1
        if level == len(settings.noise):
            break
        smoothing.undo(before)
    return checkpoints.result()


def recognised(model: Clip, pixels: Sequence[Tensor], labels: Sequence[int], classes: Classes) -> float:
    """The fraction of images whose first zero-shot guess is their label.

    Args:
        pixels: Batches of scaled pixels (n, 3, h, w).
        labels: For each image, an index into `classes.names`.
    """
    names = class_features(Tower(model, "text"), classes, run=Run())
    with torch.no_grad():
        embeddings = torch.cat([model.encode("vision", batch).cpu() for batch in pixels])
    return top_k(embeddings, names, torch.tensor(labels), 1).double().mean().item()

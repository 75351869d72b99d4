"""Concept ablation: fine-tune a UNet to generate an anchor for a name (arXiv 2303.13516, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.methods._checks import check_above_zero, check_at_least
from muwa.methods._prompts import ANCHORS, prompt_pairs
from muwa.methods._unet import Training, check_unet_method, log_losses, train_weights, unet_edit
from muwa.methods.base import Method
from muwa.models.diffusion.denoiser import Denoiser, cross_attention

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.diffusion.denoiser import Conditions
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.edit import Edit

WEIGHTS = {"cross-attn": "cross-attention k, v", "full": "all weights"}


@dataclass(frozen=True)
class ConceptAblation(Method):
    """Fine-tune a UNet so that a prompt with a forgotten name gives what the anchor's prompt gave before.

    loss = |trained(x_t, t, name) - unedited(x_t, t, anchor)|^2
           + prior_weight |trained(x_t, t, anchor) - truth|^2

    Both terms are means over images and latents. x_t is an image of the anchor that the unedited model
    generated, with noise added at a random timestep t. Several names are forgotten together, all towards one
    anchor.

    Args:
        anchor: What to generate in place of the names; None takes a neighbour for the kind of task
            (`muwa.methods._prompts.ANCHORS`).
        weights: The weights that are trained: "cross-attn", keys and values of the cross-attention; "full",
            all.
        iterations: Steps of AdamW. The step in the record is `learning_rate * iterations`.
        learning_rate: Of AdamW.
        batch_size: Images an iteration.
        pictures: Images that are generated of the anchor, with the model's sampling steps and guidance.
        prior_weight: Weight of the diffusion loss on the anchor's images, at least 0; 0 leaves it out.
        seed: Of images, timesteps and noise.

    Source: the paper's model-based variant, with AdamW and gradient clipping as in the authors' code. Differs
    in four ways. The target comes from the unedited model; their code takes it from the model that is
    trained, without a gradient. The anchor's prompts are those of the task, not written by a language model.
    Images are not resized, flipped or filtered. The key and the value of the start token have gradients like
    those of the others.
    """

    anchor: str | None
    weights: str
    iterations: int
    learning_rate: float
    batch_size: int
    pictures: int
    prior_weight: float
    seed: int

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_unet_method("concept_ablation", model, run)
        if self.weights not in WEIGHTS:
            raise ValueError(f"method.weights: got {self.weights!r}, want one of {', '.join(WEIGHTS)}")
        check_at_least(
            {
                "iterations": (self.iterations, 1),
                "batch_size": (self.batch_size, 1),
                "pictures": (self.pictures, 1),
                "prior_weight": (self.prior_weight, 0),
            }
        )
        check_above_zero({"learning_rate": self.learning_rate})
        if self.anchor is None and task.kind not in ANCHORS:
            raise ValueError(
                f"method.anchor: got null, and a task of kind {task.kind!r} has no anchor; "
                "give what to generate instead of the name"
            )
        self._prompt_pairs(task)

    def __call__(self, model: Diffusion, task: Task, run: Run) -> Edit:
        """The edit of the weights that were trained.

        Raises:
            ValueError: The loss is no longer finite.
        """
        pairs = self._prompt_pairs(task)
        training: Training = run.cached("edit", train, model, pairs, self, _free={"run": run})
        log_losses(task, training["losses"], run)
        step, samples = self.learning_rate * self.iterations, self.iterations * self.batch_size
        return unet_edit(model, task, training["deltas"], WEIGHTS[self.weights], step, samples)

    def _prompt_pairs(self, task: Task) -> tuple[tuple[str, str], ...]:
        return prompt_pairs(task, ANCHORS[task.kind] if self.anchor is None else self.anchor)


def train(
    model: Diffusion, pairs: Sequence[tuple[str, str]], settings: ConceptAblation, *, run: Run
) -> Training:
    """Generate the anchor's images and train copies of the weights on them: see `ConceptAblation`.

    Args:
        pairs: (prompt to forget, prompt of the anchor). Image i is generated from pair i modulo their number.

    Raises:
        ValueError: The loss is no longer finite.
    """
    denoiser = Denoiser(model)
    names = cross_attention(model) if settings.weights == "cross-attn" else list(denoiser.weights)
    targets = denoiser.conditions([prompt for prompt, _ in pairs])
    anchors = denoiser.conditions([anchor for _, anchor in pairs])
    generator = torch.Generator().manual_seed(settings.seed)
    latents = anchor_latents(model, denoiser, anchors, denoiser.noise(settings.pictures, generator), run)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        chosen = torch.randint(settings.pictures, (settings.batch_size,), generator=generator).tolist()
        timesteps = denoiser.scheduler.config.num_train_timesteps
        times = torch.randint(timesteps, (settings.batch_size,), generator=generator)
        t, noise = times.to(latents.device), denoiser.noise(settings.batch_size, generator)
        x = denoiser.scheduler.add_noise(latents[chosen], noise, t)
        prompts = [i % len(pairs) for i in chosen]
        with torch.no_grad():
            wanted = denoiser(x, t, anchors.select(prompts))
        value = F.mse_loss(denoiser(x, t, targets.select(prompts), weights), wanted)
        if settings.prior_weight:
            of_anchor = denoiser(x, t, anchors.select(prompts), weights)
            truth = denoiser.truth(latents[chosen], noise, t)
            value = value + settings.prior_weight * F.mse_loss(of_anchor, truth)
        return value

    optimizer = partial(torch.optim.AdamW, lr=settings.learning_rate, weight_decay=0.01)
    start = {name: denoiser.weights[name] for name in names}
    return train_weights(start, optimizer, loss, iterations=settings.iterations, max_norm=1.0, run=run)


def anchor_latents(
    model: Diffusion, denoiser: Denoiser, anchors: Conditions, noise: Tensor, run: Run
) -> Tensor:
    """Latents (n, channels, height, width) of images of the anchor, generated from `noise` of the same shape.

    Args:
        anchors: Conditions of the anchor's prompts; image i is generated from number i modulo their number.
    """
    empty, generated = denoiser.conditions([""]), []
    batches = [range(i, min(i + model.batch, len(noise))) for i in range(0, len(noise), model.batch)]
    for batch in run.track(batches, "generating the anchor", len(noise), sizes=map(len, batches)):
        given = anchors.select([i % len(anchors) for i in batch])
        latents, _ = denoiser.sample(
            noise[batch.start : batch.stop],
            given,
            empty,
            steps=model.sampling.steps,
            guidance=model.sampling.guidance,
        )
        generated.append(latents)
    return torch.cat(generated)

"""ESD: fine-tune a UNet towards its own negative guidance (arXiv 2303.07345, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.data.prompts import prompts_with
from muwa.methods._checks import check_above_zero, check_at_least
from muwa.methods._unet import Training, check_unet_method, log_losses, train_weights, unet_edit
from muwa.methods.base import Method
from muwa.models.diffusion.denoiser import Denoiser
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.types.ranges import Count, LearningRate, NotNegative, Scale, Seed

if TYPE_CHECKING:
    from muwa.models.base import Editable, Observer
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.data import Task
    from muwa.types.edit import Edit

VARIANTS = {"x": "cross-attention", "u": "all but cross-attention"}


@dataclass(frozen=True)
class ESD(Method):
    """Fine-tune a UNet so that a prompt with a forgotten name gives what guidance away from it gave before.

    Each iteration draws one prompt at random. The model in training denoises random noise with this prompt,
    down to a random timestep. The loss there is the mean squared distance to the target `away_from`. Several
    names are forgotten together. In the record, `Move.step` holds `learning_rate * iterations`.

    Args:
        variant: Which weights are trained. "x": the cross-attention, so that the name in a prompt is
            forgotten. "u": all others, so that the concept is forgotten whatever the prompt.
        eta: Strength of the negative guidance, at least 0: how far the target lies beyond the prediction for
            the empty prompt.
        iterations: Steps of Adam.
        learning_rate: Learning rate of Adam.
        batch_size: Images per iteration, all with the same prompt and at the same timestep.
        sampling_steps: DDIM steps from noise to an image.
        start_guidance: Classifier-free guidance while the model denoises, at least 1 (no guidance).
        seed: Seed for prompts, timesteps and noise.

    Source: the paper's variants ESD-x and ESD-u, with Adam and one image per iteration. We differ in three
    ways:

    - The timestep is the one at which the sampler has stopped. The authors' first code draws one near it.
    - "u" trains every weight outside `attn2`. The authors leave out the time embedding and the last layer.
    - The prompts of a name are the task's prompts and the bare name.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    variant: Literal["x", "u"]
    eta: NotNegative
    iterations: Count
    learning_rate: LearningRate
    batch_size: Count
    sampling_steps: Count
    start_guidance: Scale
    seed: Seed

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """See `Method`."""
        check_unet_method("esd", model, run)
        if self.variant not in VARIANTS:
            raise ValueError(f"method.variant: got {self.variant!r}, want one of {', '.join(VARIANTS)}")
        check_at_least(
            {
                "eta": (self.eta, 0),
                "iterations": (self.iterations, 1),
                "batch_size": (self.batch_size, 1),
                "sampling_steps": (self.sampling_steps, 1),
                "start_guidance": (self.start_guidance, 1),
            }
        )
        check_above_zero({"learning_rate": self.learning_rate})

    def __call__(self, model: Diffusion, task: Task, run: Run) -> Edit:
        """The edit of the trained weights.

        Raises:
            ValueError: The loss is not finite.
        """
        prompts = tuple(dict.fromkeys(prompt for name in task.names for prompt in prompts_with(task, name)))
        training: Training = run.cached("edit", train, model, prompts, self, _free={"run": run})
        log_losses(task, training["losses"], run)
        step, samples = self.learning_rate * self.iterations, self.iterations * self.batch_size
        return unet_edit(model, task, training["deltas"], VARIANTS[self.variant], step, samples)


def train(model: Diffusion, prompts: Sequence[str], settings: ESD, *, run: Run) -> Training:
    """Train copies of the weights: see `ESD`.

    Raises:
        ValueError: The loss is not finite.
    """
    denoiser, cross = Denoiser(model), settings.variant == "x"
    start = {name: weight for name, weight in denoiser.weights.items() if (".attn2." in name) == cross}
    empty, conditions = denoiser.conditions([""]), denoiser.conditions(prompts)
    generator = torch.Generator().manual_seed(settings.seed)

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        chosen = int(torch.randint(len(prompts), (), generator=generator))
        stop = int(torch.randint(settings.sampling_steps, (), generator=generator))
        given = conditions.select([chosen] * settings.batch_size)
        x, t = denoiser.sample(
            denoiser.noise(settings.batch_size, generator),
            given,
            empty,
            steps=settings.sampling_steps,
            guidance=settings.start_guidance,
            stop=stop,
            tuned=weights,
        )
        with torch.no_grad():
            both = empty.select([0] * settings.batch_size).join(given)
            without, before = denoiser(torch.cat([x, x]), t, both).chunk(2)
        return F.mse_loss(denoiser(x, t, given, weights), away_from(before, without, settings.eta))

    optimizer = partial(torch.optim.Adam, lr=settings.learning_rate)
    return train_weights(start, optimizer, loss, iterations=settings.iterations, run=run)


def away_from(given: Tensor, without: Tensor, eta: float) -> Tensor:
    """The target `without - eta (given - without)`: guidance away from a prompt, by the unedited model.

    The target is the same whether the UNet predicts noise or v. At a fixed x_t and t (alpha > 0), v = (noise
    - sigma x_t) / alpha is affine in the noise, and the weights 1 + eta and -eta add up to 1. Only the loss
    weights timesteps differently.

    Args:
        given: Predictions for the prompt.
        without: Predictions for the empty prompt, of the same shape.

    >>> away_from(torch.tensor(3.0), torch.tensor(1.0), 0.5).item()
    0.0
    """
    return without - eta * (given - without)

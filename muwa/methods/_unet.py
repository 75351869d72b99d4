"""Code shared by the methods that edit a UNet: checks, a training loop, and the edit made from deltas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from muwa.methods._checks import refuse_gradient_file
from muwa.methods._edits import Deltas, difference
from muwa.methods._evaluator import norm
from muwa.models.base import check_observer
from muwa.models.diffusion.denoiser import cross_attention
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.types.edit import Edit, Move

if TYPE_CHECKING:
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.data import Task


class Training(TypedDict):
    """The result of a training: UNet parameter name -> delta, and the loss before each step."""

    deltas: Deltas
    losses: list[float]


def check_unet_method(method: str, model: Any, run: Run) -> None:
    """Raise if a method that edits a UNet does not fit the model or the run.

    Args:
        method: The method's name in the config ("uce").

    Raises:
        ValueError: The model generates no images, its UNet has no cross-attention, or the run has a gradient
            file.
    """
    check_observer(f"method={method}", ImageGenerator, model)
    refuse_gradient_file(method, run)
    cross_attention(model)


def train_weights(
    start: Mapping[str, Tensor],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    iterations: int,
    max_norm: float | None = None,
    run: Run,
) -> Training:
    """Minimise a loss over fp32 copies of some weights.

    Args:
        start: Parameter name -> weight before the training; not changed.
        optimizer: Makes the optimizer for a list of tensors.
        loss: Takes parameter name -> weight; returns a scalar.
        max_norm: The gradient of each step is clipped to this norm; None does not clip.

    Raises:
        ValueError: The loss is not finite.
    """
    weights = {name: weight.detach().float().clone().requires_grad_() for name, weight in start.items()}
    descent = optimizer(list(weights.values()))
    losses: list[float] = []
    for step in run.track(range(iterations), "fine-tuning", iterations):
        descent.zero_grad(set_to_none=True)
        with torch.enable_grad():
            value = loss(weights)
            value.backward()
        if not torch.isfinite(value):
            raise ValueError(
                f"method.learning_rate: the loss is {value.item()} at step {step + 1}; use a lower learning "
                "rate"
            )
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(weights.values(), max_norm)
        descent.step()
        losses.append(value.item())
    return {"deltas": difference(weights, start), "losses": losses}


def log_losses(task: Task, losses: Sequence[float], run: Run) -> None:
    """Log one "loss" event per step of a training, whether it was just computed or read from the cache."""
    for step, value in enumerate(losses):
        run.log("loss", {"concept": ", ".join(task.names), "step": step + 1, "loss": value})


def unet_edit(
    model: Diffusion, task: Task, deltas: Mapping[str, Tensor], layer: str, step: float, samples: int = 0
) -> Edit:
    """The edit of a UNet, with one move per name: all names were forgotten together.

    Args:
        deltas: UNet parameter name -> fp32 change.
        layer: What was edited, in words.
        step: How far the edit went, in a unit of the method's choice.
        samples: Number of images whose gradient was computed.
    """
    weights = model.weights("unet")
    size = norm(deltas) / norm({name: weights[name] for name in deltas}) if deltas else 0.0
    moves = tuple(Move(name, "unet", layer, step, size) for name in task.names)
    return Edit({f"unet/{name}": delta for name, delta in deltas.items()}, moves, samples=samples)

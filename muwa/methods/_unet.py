"""Checks of settings; and what the text-to-image methods share: fine-tuning some weights, and making it an edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from muwa.layer_search.steps import Log
from muwa.models.clip.layers import GRANULARITIES
from muwa.models.clip.model import Clip
from muwa.models.diffusion.model import Diffusion
from muwa.runtime.progress import track
from muwa.types.data import Task
from muwa.types.edit import Edit, Move
from muwa.types.search import Layer

Tuned = dict[str, dict[str, Tensor] | list[float]]  # {"deltas": ..., "losses": one an iteration}


def check_call(method: str, model: object, gradient_file: Path | None) -> None:
    """Refuse what a method that edits a UNet cannot use.

    Raises:
        ValueError: A model that draws nothing, or a file of gradients.
    """
    if not isinstance(model, Diffusion):
        raise ValueError(
            f"method={method}: got a {type(model).__name__}, want a text-to-image model: the method edits a UNet"
        )
    if gradient_file is not None:
        raise ValueError(
            f"gradients: method={method} takes no gradients of a CLIP; leave gradients={gradient_file} out"
        )


def check_at_least(bounds: Mapping[str, tuple[float, float]]) -> None:
    """Check settings that have a least value: name -> (value, least).

    Raises:
        ValueError: Names the first that is below.
    """
    for key, (value, least) in bounds.items():
        if not least <= value < float("inf"):
            raise ValueError(f"method.{key}: got {value}, want at least {least}")


def check_above_zero(values: Mapping[str, float]) -> None:
    """Check settings that must be positive.

    Raises:
        ValueError: Names the first that is not.
    """
    for key, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"method.{key}: got {value}, want a number above 0")


def layers_at(model: Clip, granularity: str) -> list[Layer]:
    """The candidates of a CLIP at a method's own granularity.

    Raises:
        ValueError: There is no such granularity.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"method.granularity: got {granularity!r}, want one of {', '.join(GRANULARITIES)}")
    return model.layers(granularity)


def tune(
    weights: Mapping[str, Tensor], names: Sequence[str], optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    loss: Callable[[Mapping[str, Tensor]], Tensor], *, iterations: int, clip: float | None = None, progress: bool = False,
) -> Tuned:  # fmt: skip
    """Minimise `loss(fp32 copies of the named weights)`; `weights` themselves stay as they are.

    Args:
        optimizer: Makes one for these tensors.
        clip: Largest norm of a step's gradient; None leaves it.

    Returns:
        {"deltas": name -> fp32 change, for tensors that changed; "losses": before each step}.

    Raises:
        ValueError: The loss is no longer finite.
    """
    tuned = {name: weights[name].detach().float().clone().requires_grad_() for name in names}
    descent = optimizer(list(tuned.values()))
    losses: list[float] = []
    for step in track(range(iterations), "fine-tuning", iterations, show=progress):
        descent.zero_grad(set_to_none=True)
        with torch.enable_grad():
            value = loss(tuned)
            value.backward()
        if not torch.isfinite(value):
            raise ValueError(f"method.learning_rate: the loss is {value.item()} at step {step + 1}; lower it")
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(tuned.values(), clip)
        descent.step()
        losses.append(value.item())
    deltas = {name: tensor.detach() - weights[name].float() for name, tensor in tuned.items()}
    return {"deltas": {name: delta for name, delta in deltas.items() if delta.any()}, "losses": losses}


def tell(task: Task, losses: Sequence[float], log: Log) -> None:
    """Tell the loggers of a fine-tuning, live or read back: one "loss" event a step."""
    for step, value in enumerate(losses):
        log("loss", {"concept": ", ".join(task.names), "step": step + 1, "loss": value})


def edit_of(
    model: Diffusion, task: Task, deltas: Mapping[str, Tensor], layer: str, step: float, samples: int = 0
) -> Edit:
    """The edit of a UNet: deltas by parameter name -> an edit, with one move for each name (they were forgotten together).

    Args:
        layer: What was edited, in words.
        step: Of the moves: the method's own measure of how far it went.
        samples: LabelledImages whose gradient was taken.
    """
    weights = model.weights("unet")

    def size(of: Mapping[str, Tensor]) -> float:
        return sum(of[name].double().square().sum().item() for name in deltas) ** 0.5

    relative = size(deltas) / size(weights) if deltas else 0.0
    moves = tuple(Move(name, "unet", layer, step, relative) for name in task.names)
    return Edit({f"unet/{name}": delta for name, delta in deltas.items()}, moves, samples=samples)

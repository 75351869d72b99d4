"""ESD: fine-tune a UNet away from a concept by its own negative guidance (arXiv 2303.07345, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.layer_search.steps import Log, silent
from muwa.methods._prompts import prompts_of
from muwa.methods._unet import Tuned, check_above_zero, check_at_least, check_call, edit_of, tell, tune
from muwa.models.diffusion.denoiser import Denoiser, cross_attention
from muwa.models.diffusion.model import Diffusion
from muwa.runtime.distributed import ALONE, Distributed
from muwa.types.data import Task
from muwa.types.edit import Edit

VARIANTS = {"x": "cross-attention", "u": "all but cross-attention"}


def unlearn(
    model: Diffusion,
    task: Task,
    *,
    store: Store,
    variant: str = "x",
    eta: float = 1.0,
    iterations: int = 200,
    learning_rate: float = 1e-4,
    batch_size: int = 4,
    sampling_steps: int = 10,
    start_guidance: float = 3.0,
    seed: int = 0,
    log: Log = silent,
    gradient_file: Path | None = None,
    world: Distributed = ALONE,
    progress: bool = False,
) -> Edit:
    """Fine-tune so that a prompt of a forgotten name gives what guidance *away* from it gave: `away_from`.

    Args:
        task: What to forget. Several names are forgotten together: each iteration takes one of all their prompts at random.
        variant: Which weights: "x", the cross-attention (a name in a prompt); "u", all others (whatever the prompt).
        eta: How far beyond the empty prompt's prediction the target lies.
        batch_size: LabelledImages an iteration, all at the same timestep.
        sampling_steps, start_guidance: DDIM steps of a whole picture, and guidance, of the model being tuned as it draws
            what it is tuned on.
        gradient_file: Not used; refused.
        world: All processes but the first stop at once, with an empty edit.

    Returns:
        The edit; each name's move has `learning_rate * iterations` as its step. A run that was seen before is read back.

    Raises:
        ValueError: A setting is out of range, before any compute; the model draws nothing; the loss is no longer finite.

    Source: the paper's variants ESD-x and ESD-u, Adam, one picture an iteration. Differs: the timestep is the one the
    sampler has stopped at (the authors' first code draws one near it); "u" takes every weight outside `attn2` (they leave
    out the time embedding and the last layer); prompts of a name are the task's as well as the bare name.
    """
    check_call("esd", model, gradient_file)
    if variant not in VARIANTS:
        raise ValueError(f"method.variant: got {variant!r}, want one of {', '.join(VARIANTS)}")
    check_at_least({"eta": (eta, 0), "iterations": (iterations, 1), "batch_size": (batch_size, 1),
                    "sampling_steps": (sampling_steps, 1), "start_guidance": (start_guidance, 1)})  # fmt: skip
    check_above_zero({"learning_rate": learning_rate})
    cross_attention(model)
    if not world.leads:
        return Edit({}, ())
    texts = tuple(dict.fromkeys(text for name in task.names for text in prompts_of(task, name)))
    found = store.get("edit", train, model, texts, variant, eta, iterations, learning_rate, batch_size, sampling_steps,
                      start_guidance, seed, _free={"progress": progress})  # fmt: skip
    tell(task, found["losses"], log)
    return edit_of(model, task, found["deltas"], VARIANTS[variant], learning_rate * iterations, iterations * batch_size)


def train(
    model: Diffusion, texts: Sequence[str], variant: str, eta: float, iterations: int, learning_rate: float, batch_size: int,
    sampling_steps: int, start_guidance: float, seed: int, *, progress: bool = False,
) -> Tuned:  # fmt: skip
    """The fine-tuning itself, on copies: see `unlearn`."""
    denoiser = Denoiser(model)
    names = [name for name in denoiser.weights if (".attn2." in name) == (variant == "x")]
    empty, prompts = denoiser.conditions([""]), denoiser.conditions(texts)
    generator = torch.Generator().manual_seed(seed)

    def loss(tuned: Mapping[str, Tensor]) -> Tensor:
        row = int(torch.randint(len(texts), (), generator=generator))
        stop = int(torch.randint(sampling_steps, (), generator=generator))
        given = prompts.select([row] * batch_size)
        x, t = denoiser.sample(denoiser.noise(batch_size, generator), given, empty, steps=sampling_steps,
                               guidance=start_guidance, stop=stop, tuned=tuned)  # fmt: skip
        with torch.no_grad():
            both = empty.select([0] * batch_size).join(given)
            without, before = denoiser(torch.cat([x, x]), t, both).chunk(2)
        return F.mse_loss(denoiser(x, t, given, tuned), away_from(before, without, eta))

    optimizer = partial(torch.optim.Adam, lr=learning_rate)
    return tune(denoiser.weights, names, optimizer, loss, iterations=iterations, progress=progress)


def away_from(given: Tensor, without: Tensor, eta: float) -> Tensor:
    """`without - eta (given - without)`: the frozen model's prediction without a prompt, guided away from the prompt.

    The same target for noise and for v predictions: at one x_t and t (alpha > 0), v = (noise - sigma x_t) / alpha is
    affine in the noise, and the weights of this mix, 1 + eta and -eta, add up to 1. Only the loss weighs timesteps anew.

    >>> away_from(torch.tensor(3.0), torch.tensor(1.0), 0.5).item()
    0.0
    """
    return without - eta * (given - without)

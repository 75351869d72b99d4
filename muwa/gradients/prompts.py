"""Gradients of prompt embeddings of a text-to-image pipeline, and moments over the prompts that are retained.

A pipeline's UNet reads every position of its text encoders' outputs, padding included. SLUG takes its
gradients on the CLIP of an encoder, whose loss sees one position. Here the loss is the distance of the prompt
embeddings to those of the same prompts with something else in place of the name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from muwa.data.prompts import (
    prompts_with,
    replaced_prompts,
    retain_prompts,
    retained_prompts,
    stand_in_prompts,
)
from muwa.fingerprint import digest
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.moments import Sums, WeightProducts, adder
from muwa.gradients.towers import gradients_by_clip, moments_by_clip
from muwa.models.base import Observer, check_observer
from muwa.models.clip.layers import as_matrix, matrices
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.diffusion.text_encoders import prompt_only
from muwa.types.gradients import FORGET_ALONE, Gradients, Moments
from muwa.types.ranges import Count

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.diffusion.model import Diffusion
    from muwa.run import Run
    from muwa.types.data import Task


class EncoderSums(TypedDict):
    """The second moments of one text encoder's weights over prompts, by their names in the pipeline."""

    inputs: Sums
    outputs: Sums


def embeddings(model: Diffusion, prompts: Sequence[str]) -> Tensor:
    """All that the UNet reads of each prompt, as one row: (n, d) fp32.

    It holds the embeddings of all positions and, in Stable Diffusion XL, the pooled ones. The pipeline must
    have the model's weights (`Diffusion.loaded`). Gradients flow if they are enabled.
    """
    embedded = model.pipeline.encode_prompt(prompt=list(prompts), **prompt_only(model.device))
    return torch.cat([x.flatten(1).float() for x in embedded if isinstance(x, Tensor)], 1)


def prompt_gradient_sums(
    model: Diffusion,
    prompts: Sequence[Sequence[str]],
    stand_ins: Sequence[Sequence[str]],
    *,
    batch_size: int,
    run: Run,
) -> dict[str, dict[str, Tensor]]:
    """The gradient of the prompt loss with respect to the CLIP of each text encoder, summed over prompts.

        loss of prompt i of a name = -|e(prompt i) - mean over the stand-ins of e(their prompt i)|^2

    A step along it moves the prompts of the name *towards* the stand-ins. Their embeddings are constants.

    Args:
        prompts: The prompts of each name.
        stand_ins: The prompts of each stand-in, as many as a name has and in the same order.
        batch_size: Prompts that are embedded at once. It changes the result by rounding only.
        run: Shows the progress.

    Returns:
        Text encoder -> the sum, by the parameter names of its CLIP, as fp32 on the CPU. Weights that the
        encoder does not have, and weights that the pipeline does not read, have zeros.

    Raises:
        ValueError: A sum is not finite.
    """
    places = [(prompt, i) for of_name in prompts for i, prompt in enumerate(of_name)]
    batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
    with model.loaded(), torch.no_grad():
        targets = sum(embeddings_of(model, one, batch_size) for one in stand_ins) / len(stand_ins)
    assert isinstance(targets, Tensor)
    with model.loaded(), _with_gradients(model) as encoders:
        for batch in run.track(batches, "prompt gradient", len(places), sizes=map(len, batches)):
            rows = embeddings(model, [prompt for prompt, _ in batch])
            (rows - targets[[i for _, i in batch]]).square().sum().neg().backward()
        sums = {
            encoder: gradients_by_clip(model.clips[encoder], {name: _grad(p) for name, p in tower.items()})
            for encoder, tower in encoders.items()
        }
    if not all(tensor.isfinite().all() for one in sums.values() for tensor in one.values()):
        raise ValueError(
            "gradient_source=prompts: the gradient is not finite in the pipeline's own precision; take "
            "model.dtype=bf16 or fp32, whose range is wider than that of fp16"
        )
    return sums


def embeddings_of(model: Diffusion, prompts: Sequence[str], batch_size: int) -> Tensor:
    """`embeddings` of many prompts, some at a time."""
    return torch.cat(
        [embeddings(model, prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
    )


def prompt_moment_sums(
    model: Diffusion, prompts: Sequence[str], *, outputs: bool, seed: int, batch_size: int, run: Run
) -> dict[str, EncoderSums]:
    """The second moments of the weights of each text encoder over prompts, as the pipeline encodes them.

    Inputs x are those at all positions that the encoder computes, padding included: the UNet reads them all.
    The gradients d at the outputs are those of <u, embeddings of a prompt>, with u standard normal. E[d d^T]
    is then the output factor of the change of the embeddings, E|change|^2.

    Args:
        outputs: Whether the moments of the gradients at the outputs are computed too.
        seed: Seed for u.
        batch_size: Prompts that are embedded at once.
        run: Shows the progress.

    Source: K-FAC (arXiv 1503.05671), section 2.1, with targets drawn from the model of a squared error.
    """
    batches = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    generator = torch.Generator().manual_seed(seed)
    bar = run.track(batches, "moments of the prompts", len(prompts), sizes=map(len, batches))
    with model.loaded(), _with_gradients(model) as encoders:
        weights = {
            f"{encoder}/{name}": tower[name].detach()
            for encoder, tower in encoders.items()
            for name in matrices(tower)
        }
        of_inputs, of_outputs = _zeros(weights, 1), _zeros(weights, 0) if outputs else {}
        seen = WeightProducts(weights, adder(of_inputs), adder(of_outputs, outputs=True))
        with seen, torch.set_grad_enabled(outputs):
            for batch in bar:
                rows = embeddings(model, batch)
                if outputs:
                    u = torch.randn(rows.shape, generator=generator).to(rows.device)
                    (rows * u).sum().backward()
        return {
            encoder: {"inputs": _of_encoder(encoder, of_inputs), "outputs": _of_encoder(encoder, of_outputs)}
            for encoder in encoders
        }


def _zeros(weights: Mapping[str, Tensor], dim: int) -> Sums:
    """A sum over nothing for the outputs (dim 0) or inputs (dim 1) of each weight."""
    sizes = {name: as_matrix(name, weight).shape[dim] for name, weight in weights.items()}
    return {name: torch.zeros(size, size, device=weights[name].device) for name, size in sizes.items()}


def _of_encoder(encoder: str, sums: Sums) -> Sums:
    """The sums of one text encoder, on the CPU, without those of weights that no product was seen of."""
    prefix = f"{encoder}/"
    return {
        name.removeprefix(prefix): total.cpu()
        for name, total in sums.items()
        if name.startswith(prefix) and total.any()
    }


def _grad(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def _with_gradients(model: Diffusion) -> Iterator[dict[str, dict[str, nn.Parameter]]]:
    """Require gradients with respect to the parameters of the text encoders; afterwards their `grad` is None.

    Yields:
        Text encoder -> parameter name -> parameter.
    """
    encoders = {encoder: dict(getattr(model.pipeline, encoder).named_parameters()) for encoder in model.clips}
    parameters = [parameter for tower in encoders.values() for parameter in tower.values()]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield encoders
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


@dataclass(frozen=True)
class PromptGradients(GradientSource):
    """Gradients of prompt embeddings: the prompts of a name are moved towards those of its stand-ins.

    The prompts of a name are the bare name and the task's prompts with it (`muwa.data.prompts.prompts_with`).
    The forget gradient is that of `prompt_gradient_sums` for the name. The retain gradient is the same for
    the retained names: a step along it moves them towards the stand-ins too. Moments are of the retained
    prompts. The losses that the recipe names are not used.

    A task of prompts alone (task=prompts) has the prompts of its probe set: those about the concept are moved
    towards those to be kept. A prompt that mentions the concept has another one in its place.

    Args:
        anchor: What stands in for a name ("a person"). None takes the mean over other names of its kind, or
            over prompts to be kept.
        stand_ins: How many of these are taken, evenly spread over the retained ones.

    Source: muwa's own. UCE (arXiv 2308.14761) moves the same prompts, there in the UNet's cross-attention.
    """

    observes: ClassVar[type[Observer]] = ImageGenerator

    anchor: str | None
    stand_ins: Count

    @property
    def reads_pairs(self) -> bool:
        """No: it reads prompts alone."""
        return False

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if a setting is out of range, the model generates no images, or a gradient file is given.

        Raises:
            ValueError: Says which setting does not fit.
        """
        check_observer("gradient_source=prompts", self.observes, model)
        if self.stand_ins < 1:
            raise ValueError(f"gradient_source.stand_ins: got {self.stand_ins}, want at least 1")
        if run.gradient_file is not None:
            raise ValueError(
                f"gradients={run.gradient_file}: a file holds gradients of a CLIP, gradient_source=prompts "
                "takes those of prompts; leave gradients=null, or take gradient_source=clip"
            )

    def __call__(
        self, model: Diffusion, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The gradients of each text encoder's CLIP. Worker ranks do not help; they get None.

        Raises:
            ValueError: There are no retained names, or the anchor is to be forgotten.
        """
        if not run.is_main:
            return None
        stand_ins = self._stand_ins(task, name)
        forgotten, retained = prompts_with(task, name), retained_prompts(task, name)
        batch_size = recipe.micro_batch_size or recipe.batch_size
        taken = {"forget": (forgotten,)} | ({"retain": retained} if recipe.retain_gradient else {})
        sums: dict[str, dict[str, dict[str, Tensor]]] = {
            side: run.cached(
                f"gradients/prompts_{side}",
                prompt_gradient_sums,
                model,
                some,
                stand_ins,
                batch_size=batch_size,
                _free={"run": run},
            )
            for side, some in taken.items()
        }
        counts = {side: sum(map(len, some)) for side, some in taken.items()}
        origin = {
            "model": model.fingerprint,
            "forget_pairs": digest(forgotten),
            "retain_pairs": digest([prompt for some in retained for prompt in some]),
            "losses": digest([prompt for some in stand_ins for prompt in some]),
            "batch_size": str(batch_size),
            "seed": str(recipe.seed),  # of the moments at the outputs
            **({} if recipe.retain_gradient else FORGET_ALONE),
        }

        def mean(side: str, encoder: str) -> dict[str, Tensor]:
            of_encoder = sums[side][encoder] if side in sums else {}
            return {key: total / counts[side] for key, total in of_encoder.items()}

        return {
            key: Gradients(
                mean("forget", key), mean("retain", key), counts["forget"], counts.get("retain", 0), origin
            )
            for key in model.clips
        }

    def _stand_ins(self, task: Task, name: str) -> tuple[tuple[str, ...], ...]:
        """The prompts of each stand-in, as many as the name has and in the same order."""
        others = stand_in_prompts(task, name, self.stand_ins)
        if not others:
            raise ValueError(
                "gradient_source=prompts: the task has no names to retain; want some of the forgotten kind"
            )
        if self.anchor is None:
            return others
        if self.anchor in task.names:
            raise ValueError(
                f"gradient_source.anchor: got {self.anchor!r}, which is to be forgotten; want something else"
            )
        return (replaced_prompts(task, name, self.anchor),)

    def moments(
        self, model: Diffusion, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of each text encoder's CLIP over the retained prompts; None on worker ranks."""
        if not run.is_main:
            return None
        sums: dict[str, EncoderSums] = run.cached(
            "moments/prompts",
            prompt_moment_sums,
            model,
            retain_prompts(task),
            outputs=outputs,
            seed=recipe.seed,
            batch_size=recipe.micro_batch_size or recipe.batch_size,
            _free={"run": run},
        )
        return {
            encoder: moments_by_clip(
                model.clips[encoder], model.weights(encoder), one["inputs"], one["outputs"]
            )
            for encoder, one in sums.items()
        }

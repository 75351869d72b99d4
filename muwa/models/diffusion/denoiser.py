"""A pipeline's UNet as a function of its weights, in fp32, for fine-tuning. The pipeline is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.func import functional_call

from muwa.models.diffusion.model import NOTHING, Diffusion
from muwa.models.diffusion.text_encoders import prompt_only
from muwa.types.short import short_repr

PREDICTIONS = ("epsilon", "v_prediction")
EXTRA_CONDITIONS = (None, "text_time")  # the second is Stable Diffusion XL's


@dataclass(frozen=True)
class Conditions:
    """UNet conditioning for n prompts.

    Args:
        hidden: (n, length, d) prompt embeddings.
        pooled: (n, p) pooled prompt embeddings of Stable Diffusion XL; else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.hidden)

    def select(self, indices: Sequence[int]) -> Conditions:
        """The conditioning of the prompts at `indices`, in that order; an index may be repeated."""
        pooled = self.pooled
        return Conditions(self.hidden[list(indices)], pooled[list(indices)] if pooled is not None else None)

    def join(self, other: Conditions) -> Conditions:
        """The conditioning of these prompts and then of the other's."""
        if self.pooled is None or other.pooled is None:
            return Conditions(torch.cat([self.hidden, other.hidden]))
        return Conditions(torch.cat([self.hidden, other.hidden]), torch.cat([self.pooled, other.pooled]))


def check_denoiser(model: Diffusion) -> None:
    """Raise if a `Denoiser` of this model cannot be made; reads configs only.

    Raises:
        ValueError: The UNet predicts neither noise nor v, or is conditioned on more than prompts and sizes.
    """
    prediction = model.pipeline.scheduler.config.get("prediction_type", "epsilon")
    extra = model.pipeline.unet.config.addition_embed_type
    if prediction not in PREDICTIONS or extra not in EXTRA_CONDITIONS:
        raise ValueError(
            f"{model.source}: got prediction_type={prediction!r} and addition_embed_type={extra!r}; want "
            "epsilon or v_prediction, and None or text_time (Stable Diffusion 1, 2, XL)"
        )


class Denoiser:
    """The UNet of `model` (Stable Diffusion 1, 2, XL), called with any of its weights replaced.

    Noise is added and removed by DDIM on the pipeline's noise schedule, whichever sampler the pipeline has.

    Attributes:
        weights: Parameter name -> fp32 tensor, as in `model`.
        scheduler: The DDIM scheduler of this object.
        shape: Shape of one image's latents: (channels, height, width).

    Raises:
        ValueError: See `check_denoiser`.
    """

    def __init__(self, model: Diffusion):
        check_denoiser(model)
        self._model, self._unet = model, model.pipeline.unet
        parameters = dict(self._unet.named_parameters())
        self.weights = {name: w.float() for name, w in model.weights("unet").items()}
        # weights that are not the UNet's own tensors: edited, or cast to fp32
        self._replaced = {
            name: w for name, w in self.weights.items() if w.data_ptr() != parameters[name].data_ptr()
        }
        self.scheduler = DDIMScheduler.from_config(
            model.pipeline.scheduler.config, clip_sample=False, thresholding=False
        )
        size, scale = self._unet.config.sample_size, model.pipeline.vae_scale_factor
        side = model.sampling.size // scale if model.sampling.size else size
        height, width = (side, side) if isinstance(side, int) else side
        self.shape: tuple[int, int, int] = (self._unet.config.in_channels, height, width)
        pixels = (height * scale, width * scale)
        # SDXL's time ids: original size, crop corner, target size
        self._sizes = torch.tensor([[*pixels, 0, 0, *pixels]], dtype=torch.float32, device=model.device)

    def conditions(self, texts: Sequence[str]) -> Conditions:
        """UNet conditioning for `texts`. Classifier-free guidance also needs that of the empty text."""
        each = []
        with torch.no_grad(), self._model.loaded() as loaded:
            pipeline: Any = loaded
            for text in texts:
                embedded = pipeline.encode_prompt(prompt=[text], **prompt_only(self._model.device))
                pooled = embedded[2] if self._unet.config.addition_embed_type else None
                one = Conditions(embedded[0].float(), pooled.float() if pooled is not None else None)
                if not text and pipeline.config.get("force_zeros_for_empty_prompt", False):
                    one = Conditions(0 * one.hidden, 0 * one.pooled if one.pooled is not None else None)
                each.append(one)
        pooled = [one.pooled for one in each if one.pooled is not None]
        return Conditions(torch.cat([one.hidden for one in each]), torch.cat(pooled) if pooled else None)

    def __call__(
        self, x: Tensor, t: Tensor, conditions: Conditions, tuned: Mapping[str, Tensor] = NOTHING
    ) -> Tensor:
        """The UNet's prediction (noise or v) for latents `x` at timestep `t`.

        Args:
            x: (n, channels, height, width).
            t: (n,), or a scalar for all.
            conditions: UNet conditioning for n prompts.
            tuned: Weights that replace the UNet's of these names.
        """
        keywords = {"encoder_hidden_states": conditions.hidden, "return_dict": False}
        if conditions.pooled is not None:
            sizes = self._sizes.expand(len(conditions), -1)
            keywords["added_cond_kwargs"] = {"text_embeds": conditions.pooled, "time_ids": sizes}
        return functional_call(self._unet, {**self._replaced, **tuned}, (x, t), keywords)[0]

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        conditions: Conditions,
        empty: Conditions,
        *,
        steps: int,
        guidance: float,
        stop: int | None = None,
        tuned: Mapping[str, Tensor] = NOTHING,
    ) -> tuple[Tensor, Tensor]:
        """Denoise pure noise `x` with DDIM and classifier-free guidance.

        Args:
            empty: Conditioning for the empty prompt (one row).
            steps: DDIM steps from pure noise to the image.
            guidance: Weight of guidance; 1 is none.
            stop: How many of the steps are taken; None takes all.
            tuned: Weights that replace the UNet's of these names.

        Returns:
            (The latents; the timestep they are at, which is 0 at the end.)
        """
        self.scheduler.set_timesteps(steps, device=x.device)
        times = self.scheduler.timesteps
        both = empty.select([0] * len(x)).join(conditions)
        for t in times[:stop]:
            if guidance == 1:
                out = self(x, t, conditions, tuned)
            else:
                without, given = self(torch.cat([x, x]), t, both, tuned).chunk(2)
                out = without + guidance * (given - without)
            x = self.scheduler.step(out, t, x).prev_sample
        return x, times[stop] if stop is not None and stop < len(times) else times.new_zeros(())

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, channels, height, width) standard normal, made on the CPU: the same on every device."""
        return torch.randn((n, *self.shape), generator=generator).to(self._model.device)

    def truth(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect UNet predicts for `latents` with `noise` added at timesteps `t` (n,)."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, t)


def cross_attention(model: Diffusion) -> list[str]:
    """Names of the UNet's weights that read the prompt: keys and values of its cross-attention.

    Raises:
        ValueError: It has none.
    """
    ends = (".attn2.to_k.weight", ".attn2.to_v.weight")
    names = [name for name in model.weights("unet") if name.endswith(ends)]
    if not names:
        raise ValueError(f"{model.source}: its UNet has no cross-attention (attn2.to_k, attn2.to_v) to edit")
    return names

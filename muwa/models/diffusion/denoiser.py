"""A pipeline's UNet as a function of its weights: what fine-tuning needs, with the pipeline left as it is. All in fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.func import functional_call

from muwa.models.diffusion.model import NOTHING, Diffusion


@dataclass(frozen=True)
class Conditions:
    """What the UNet is told of n prompts.

    Args:
        hidden: (n, length, d) prompt embeddings.
        pooled: (n, p), of Stable Diffusion XL; else None.
    """

    hidden: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def select(self, rows: Sequence[int]) -> Conditions:
        """Those at `rows`, in that order; a row may come twice."""
        pooled = self.pooled
        return Conditions(self.hidden[list(rows)], pooled[list(rows)] if pooled is not None else None)

    def join(self, other: Conditions) -> Conditions:
        """These and then `other`."""
        if self.pooled is None or other.pooled is None:
            return Conditions(torch.cat([self.hidden, other.hidden]))
        return Conditions(torch.cat([self.hidden, other.hidden]), torch.cat([self.pooled, other.pooled]))


class Denoiser:
    """The UNet of `model` (Stable Diffusion 1, 2, XL), called with any of its weights replaced.

    Noise is added and taken away by DDIM on the noise schedule of the pipeline, whatever sampler the pipeline itself has.

    Attributes:
        weights: Parameter name -> fp32 tensor, as they are in `model`.
        scheduler: The DDIM scheduler; this object's own.
        shape: Of one picture's latents: (channels, height, width).

    Raises:
        ValueError: The UNet predicts neither noise nor v, or wants to be told what no prompt says.
    """

    def __init__(self, model: Diffusion):
        self._model, self._unet = model, model.pipeline.unet
        own = dict(self._unet.named_parameters())
        self.weights = {name: w.float() for name, w in model.weights("unet").items()}
        self._base = {name: w for name, w in self.weights.items() if w.data_ptr() != own[name].data_ptr()}
        self.scheduler = DDIMScheduler.from_config(
            model.pipeline.scheduler.config, clip_sample=False, thresholding=False
        )
        kind, extra = self.scheduler.config.prediction_type, self._unet.config.addition_embed_type
        if kind not in ("epsilon", "v_prediction") or extra not in (None, "text_time"):
            raise ValueError(
                f"{model.source}: its UNet predicts {kind!r} and is told {extra!r} beside the prompt; want a prediction of "
                "epsilon or v_prediction, and None or text_time, as Stable Diffusion 1, 2 and XL have"
            )
        size, scale = self._unet.config.sample_size, model.pipeline.vae_scale_factor
        side = model.sampling.size // scale if model.sampling.size else size
        height, width = (side, side) if isinstance(side, int) else side
        self.shape: tuple[int, int, int] = (self._unet.config.in_channels, height, width)
        pixels = (height * scale, width * scale)
        self._about = torch.tensor([[*pixels, 0, 0, *pixels]], dtype=torch.float32, device=model.device)

    def conditions(self, texts: Sequence[str]) -> Conditions:
        """What the pipeline tells its UNet of `texts`; of an empty one, what guidance compares with."""
        told = []
        with torch.no_grad(), self._model.loaded() as loaded:
            pipeline: Any = loaded
            for text in texts:
                found = pipeline.encode_prompt(prompt=[text], device=self._model.device, num_images_per_prompt=1,
                                               do_classifier_free_guidance=False)  # fmt: skip
                pooled = found[2] if self._unet.config.addition_embed_type else None
                one = Conditions(found[0].float(), pooled.float() if pooled is not None else None)
                if not text and pipeline.config.get("force_zeros_for_empty_prompt", False):
                    one = Conditions(0 * one.hidden, 0 * one.pooled if one.pooled is not None else None)
                told.append(one)
        pooled = None if told[0].pooled is None else torch.cat([one.pooled for one in told if one.pooled is not None])
        return Conditions(torch.cat([one.hidden for one in told]), pooled)

    def __call__(self, x: Tensor, t: Tensor, conditions: Conditions, tuned: Mapping[str, Tensor] = NOTHING) -> Tensor:
        """The UNet's prediction (noise or v) for latents `x` at timestep `t`, with the weights in `tuned` replaced.

        Args:
            x: (n, channels, height, width).
            t: (n,), or a scalar for all.
            conditions: n of them.
        """
        added = {}
        if conditions.pooled is not None:
            about = self._about.expand(len(conditions), -1)
            added = {"added_cond_kwargs": {"text_embeds": conditions.pooled, "time_ids": about}}
        told = {"encoder_hidden_states": conditions.hidden, "return_dict": False, **added}
        return functional_call(self._unet, {**self._base, **tuned}, (x, t), told)[0]

    @torch.no_grad()
    def sample(
        self, x: Tensor, conditions: Conditions, empty: Conditions, *, steps: int, guidance: float, stop: int | None = None,
        tuned: Mapping[str, Tensor] = NOTHING,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Denoise pure noise `x` by `stop` of `steps` DDIM steps with classifier-free guidance (1 is none); all when None.

        Args:
            empty: One condition, of the empty prompt.

        Returns:
            (the latents; the timestep they are at, or 0 at the end).
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
        """What a perfect UNet predicts for `latents` with `noise` added at timesteps `t` (n,): the noise, or v."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(latents, noise, t)


def cross_attention(model: Diffusion) -> list[str]:
    """Names of the UNet's weights that read the prompt: keys and values of its cross-attention.

    Raises:
        ValueError: It has none.
    """
    ends = (".attn2.to_k.weight", ".attn2.to_v.weight")
    found = [name for name in model.weights("unet") if name.endswith(ends)]
    if not found:
        raise ValueError(f"{model.source}: its UNet has no cross-attention (attn2.to_k, attn2.to_v) to edit")
    return found

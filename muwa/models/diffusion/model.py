"""A diffusers text-to-image pipeline with replaceable weights, and the CLIPs of its text encoders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from muwa.fingerprint import Content, digest
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.diffusion.text_encoders import prompt_only, weights_read
from muwa.models.shipped import with_shipped
from muwa.patch import names
from muwa.patch.names import ENCODERS, by_component
from muwa.patch.weights import fingerprint_of_digests, tensor_digest
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts
from muwa.types.request import Request
from muwa.types.short import model_repr, short_repr

if TYPE_CHECKING:
    from muwa.run import Run

COMPONENTS = (*ENCODERS, "unet", "vae")  # whose weights decide what is generated
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
# Entries of a config that change no image.
_WITHOUT_EFFECT = ("architectures", "dtype", "transformers_version")
_PROBE_TEXT = "The quick brown fox, 42 jumps over the lazy dog's _back_."


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Args:
        steps: Sampling steps of the pipeline's scheduler.
        guidance: Weight of classifier-free guidance (arXiv 2207.12598); 1 is none.
        size: Height and width in pixels; None is the pipeline's default.
    """

    steps: int
    guidance: float
    size: int | None = None


@dataclass(frozen=True)
class EditedWeights:
    """The weights that an edit changes, by the names of its deltas: what its patch is bound to."""

    weights: Mapping[str, Tensor]
    weights_fingerprint: str

    __repr__ = short_repr


class Diffusion(Content):
    """A pipeline and its weights.

    It is immutable: `edited`, `with_weights` and `sampled` return a new one that shares all unchanged
    tensors.

    Args:
        pipeline: Any text-to-image pipeline of diffusers with a `unet` and CLIP text encoders (Stable
            Diffusion 1, 2 and XL).
        clips: Text encoder ("text_encoder", "text_encoder_2") -> the CLIP whose text tower it is. Gradients
            are taken on that CLIP. Only layers whose weights the pipeline has and reads can be edited.
        sampling: How `generate` samples.
        source: Where the weights came from, for messages.
        requests: The requests that the weights carry.
        place: The file or folder of this machine that the weights were read from; None if there is none.
    """

    observer: ClassVar[type[ImageGenerator]] = ImageGenerator

    def __init__(
        self,
        pipeline: Any,
        clips: Mapping[str, Clip],
        sampling: Sampling,
        *,
        source: str,
        requests: tuple[Request, ...] = (),
        place: Path | None = None,
    ):
        self.pipeline, self.sampling, self.source = pipeline, sampling, source
        self.requests, self.place = requests, place
        pipeline.set_progress_bar_config(disable=True)
        for module in self._modules.values():
            module.eval().requires_grad_(False)
        self._parameters = {
            f"{name}/{key}": p
            for name, module in self._modules.items()
            for key, p in module.named_parameters()
        }
        # The base weights stay what they are while other weights are `loaded`.
        self._base = {key: parameter.detach() for key, parameter in self._parameters.items()}
        # "unet/conv_in.weight" -> a tensor in the component's dtype.
        self.changes: Mapping[str, Tensor] = NOTHING
        self._digests: dict[str, str] = {}
        self.clips: Mapping[str, Clip] = {
            name: clip.restricted(weights_read(pipeline, name, clip, device=self.device, source=source))
            for name, clip in clips.items()
        }

    def __repr__(self) -> str:
        encoders = [
            f"{name}/{key}"
            for name, clip in self.clips.items()
            for key, tensor in clip.weights.items()
            if tensor is not clip._base[key]
        ]
        return model_repr(self, self._base.values(), [*self.changes, *encoders])

    @property
    def _modules(self) -> dict[str, nn.Module]:
        modules = {name: getattr(self.pipeline, name, None) for name in COMPONENTS}
        return {name: module for name, module in modules.items() if module is not None}

    @property
    def clip(self) -> Clip:
        """The CLIP of the first text encoder."""
        return self.clips[ENCODERS[0]]

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self._modules["unet"].parameters()).device

    def weights(self, component: str) -> dict[str, Tensor]:
        """Parameter name -> tensor of a component ("unet", "text_encoder", ...) of this model.

        Raises:
            KeyError: No such component.
        """
        if component not in self._modules:
            raise KeyError(
                f"{component}: {self.source} has no such component, only {', '.join(self._modules)}"
            )
        tensors, prefix = {**self._base, **self.changes}, f"{component}/"
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    def with_weights(self, changes: Mapping[str, Tensor]) -> Diffusion:
        """The same pipeline with some tensors replaced.

        Its CLIPs stay as they are, so use `edited` to change a text encoder.

        Args:
            changes: "unet/conv_in.weight" -> tensor of that parameter's shape; cast to its dtype.

        Raises:
            KeyError: No such component or parameter.
            ValueError: A shape differs.
        """
        cast = {}
        for key, tensor in changes.items():
            if key not in self._base:
                raise KeyError(
                    f"{key}: not a parameter of {self.source}, which has {', '.join(self._modules)}"
                )
            base = self._base[key]
            if base.shape != tensor.shape:
                raise ValueError(
                    f"{key}: got shape {tuple(tensor.shape)}, want {tuple(base.shape)} as in {self.source}"
                )
            cast[key] = tensor.detach().to(base)
        return self._copy(changes={**self.changes, **cast})

    def edited(self, edit: Edit) -> Diffusion:
        """The pipeline after `edit`: `theta' = fp32(theta) + delta`, cast back, as in `muwa.patch.apply`.

        A delta has the name of a weight of the first text encoder's CLIP ("transformer.resblocks.0..."), of
        the second's ("text_encoder_2/transformer.resblocks.0..."), or of the UNet ("unet/mid_block...").

        Raises:
            KeyError: A delta belongs to no weight of the pipeline.
            ValueError: A shape differs.
        """
        changes: dict[str, Tensor] = {}
        clips = dict(self.clips)
        for component, deltas in by_component(edit.deltas).items():
            weights = self.weights(component)
            if component in clips:
                clips[component] = clips[component].edited(replace(edit, deltas=deltas))
                deltas = names.convert_to_target(deltas, weights)
            for name, delta in deltas.items():
                if name not in weights or weights[name].shape != delta.shape:
                    self.with_weights({f"{component}/{name}": delta})  # raises, and says what is wrong
                changes[f"{component}/{name}"] = weights[name].float() + delta.to(weights[name].device)
        return self.with_weights(changes)._copy(clips=clips)

    def shipped(self, changes: Mapping[str, Tensor]) -> Diffusion:
        """The pipeline as it was shipped, where its text encoders carry patches; this is its original.

        Args:
            changes: "text_encoder/<parameter>" -> the tensor with the patches.
        """
        model, clips = self.with_weights(changes), dict(self.clips)
        for name, own in by_component(changes).items():
            clips[name] = with_shipped(clips[name], model.weights(name), own)
        return model._copy(clips=clips)

    @property
    def unedited(self) -> Diffusion:
        """The same pipeline with the weights that it was loaded with, and this model's sampling."""
        clips = {name: clip.unedited for name, clip in self.clips.items()}
        return self._copy(changes=NOTHING, clips=clips)

    def observe(self, run: Run) -> ImageGenerator:
        """The images that this model generates."""
        return ImageGenerator(self, run)

    def about(self) -> dict[str, object]:
        """Provenance: source, fingerprint, how images are sampled, and the number of weights."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "sampling": asdict(self.sampling),
            "parameters": sum(tensor.numel() for tensor in self._base.values()),
        }

    def patch_base(self, edit: Edit) -> Clip | EditedWeights:
        """What a patch of `edit` is bound to (`muwa.patch.apply.write_patch`). This is the unedited model.

        An edit of the first text encoder alone is bound to its CLIP, so that the patch fits the CLIP too. Any
        other edit is bound to the weights that it changes, with a fingerprint of their components.
        """
        edited = by_component(edit.deltas)
        if set(edited) <= {ENCODERS[0]} and all(name in self.clip.weights for name in edit.deltas):
            return self.clip
        weights = {key: self._weight_of_delta(key) for key in edit.deltas}
        clips = {name: clip.weights_fingerprint for name, clip in self.clips.items()}
        parts = [
            part
            for name in sorted(edited)
            for part in (name, clips.get(name) or self.component_fingerprint(name))
        ]
        return EditedWeights(MappingProxyType(weights), digest(parts))

    def _weight_of_delta(self, key: str) -> Tensor:
        ((component, deltas),) = by_component({key: torch.empty(0)}).items()
        weights = self.clips[component].weights if component in self.clips else self.weights(component)
        if (name := next(iter(deltas))) not in weights:
            raise KeyError(f"{key}: not a parameter of {self.source}")
        return weights[name]

    def sampled(self, **changed: Any) -> Diffusion:
        """The same model with other sampling settings: `steps`, `guidance`, `size`."""
        return self._copy(sampling=replace(self.sampling, **changed))

    def _copy(self, **changed: Any) -> Diffusion:
        other = object.__new__(Diffusion)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k != "fingerprint"} | changed)
        return other

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The diffusers pipeline with this model's weights in it, in a `with` block. Not thread-safe."""
        replaced: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for key, tensor in self.changes.items():
                parameter = self._parameters[key]
                replaced.append((parameter, parameter.data))
                parameter.data = tensor
            yield self.pipeline
        finally:
            for parameter, data in replaced:
                parameter.data = data

    @torch.inference_mode()
    def generate(self, prompts: Prompts, *, embeddings: Tensor | None = None) -> Tensor:
        """Generate the images of `prompts`.

        Each image starts from its seed's noise, made on the CPU, so it does not depend on the rest of the
        batch.

        Args:
            embeddings: (n, length, d) used in place of the prompts' embeddings (Stable Diffusion 1 and 2
                only).

        Returns:
            (n, 3, h, w) uint8 on the CPU.
        """
        options: dict[str, Any] = {"prompt": list(prompts.texts)}
        if embeddings is not None:
            unconditional = self.embed([""]).expand(len(embeddings), -1, -1)
            options = {"prompt_embeds": embeddings, "negative_prompt_embeds": unconditional}
        if self.sampling.size:
            options |= {"height": self.sampling.size, "width": self.sampling.size}
        with self.loaded() as pipeline:
            images = pipeline(
                **options,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in prompts.seeds],
                num_inference_steps=self.sampling.steps,
                guidance_scale=self.sampling.guidance,
                output_type="pt",
            ).images
        return (images.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Prompt embeddings that condition the UNet: (n, length, d)."""
        with self.loaded() as pipeline:
            return pipeline.encode_prompt(prompt=list(texts), **prompt_only(self.device))[0]

    @property
    def batch(self) -> int:
        """Images generated at once: as many as have 4,096 latent pixels on a CPU, 32,768 on a GPU."""
        side = self.pipeline.unet.config.sample_size
        if self.sampling.size:
            side = self.sampling.size // self.pipeline.vae_scale_factor
        return max(1, (1 << (12 if self.device.type == "cpu" else 15)) // side**2)

    def _digest(self, key: str) -> str:
        if key in self.changes:
            return tensor_digest(self.changes[key])
        if key not in self._digests:
            self._digests[key] = tensor_digest(self._base[key])
        return self._digests[key]

    def component_fingerprint(self, component: str) -> str:
        """SHA-256 of the weights that one component has in this model."""
        return fingerprint_of_digests(
            {name: self._digest(f"{component}/{name}") for name in self.weights(component)}
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides an image.

        That is the weights and their dtypes, the configs of the components, the tokens of a text, and the
        sampling settings. Paths and versions do not enter: a copy in another folder has the same fingerprint.
        """
        parts = [type(self.pipeline).__name__, repr(self.sampling)]
        for name, module in self._modules.items():
            parts += [name, str(next(module.parameters()).dtype), self.component_fingerprint(name)]
        for part in (*self._modules.values(), self.pipeline.scheduler):
            config = dict(part.config) if isinstance(part.config, Mapping) else part.config.to_dict()
            deciding = {k: v for k, v in config.items() if k[0] != "_" and k not in _WITHOUT_EFFECT}
            parts += [type(part).__name__, json.dumps(deciding, sort_keys=True, default=str)]
        tokenizers = [getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2")]
        tokens = [
            tokenizer(_PROBE_TEXT, padding="max_length", truncation=True)["input_ids"]
            for tokenizer in tokenizers
            if tokenizer is not None
        ]
        return digest([*parts, json.dumps(tokens)])

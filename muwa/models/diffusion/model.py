"""A diffusers text-to-image pipeline whose weights can be replaced without touching it, and its text encoders' CLIPs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from muwa.fingerprint import Content, digest
from muwa.models.clip.model import Clip
from muwa.models.diffusion.image_generation import ImageGenerator
from muwa.models.diffusion.text_encoders import alone, read
from muwa.patch import names
from muwa.patch.names import ENCODERS, by_component
from muwa.patch.weights import fingerprint_of_digests, tensor_digest
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts

if TYPE_CHECKING:
    from muwa.run import Run

COMPONENTS = (*ENCODERS, "unet", "vae")  # whose weights decide what is drawn
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_NOT_DRAWN = ("architectures", "dtype", "transformers_version")  # of a config: says nothing of what is computed
_PROBE_TEXT = "The quick brown fox, 42 jumps over the lazy dog's _back_."


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Args:
        steps: Of the pipeline's own scheduler.
        guidance: Weight of classifier-free guidance (arXiv 2207.12598); 1 is none.
        size: Height and width in pixels; None is the pipeline's own.
    """

    steps: int
    guidance: float
    size: int | None = None


@dataclass(frozen=True)
class Owner:
    """The weights that an edit of several components touches, keyed as its deltas are: what its patch is bound to."""

    weights: Mapping[str, Tensor]
    weights_fingerprint: str


class Diffusion(Content):
    """A pipeline and its weights. Immutable: `edited`, `with_weights` and `sampled` give a new one that shares the rest.

    Args:
        pipeline: Any text-to-image pipeline of diffusers with a `unet` and CLIP text encoders (Stable Diffusion 1, 2, XL).
        clips: Text encoder ("text_encoder", "text_encoder_2") -> the CLIP whose text tower it is: gradients are taken on
            it. Its candidates are limited to weights that the pipeline has and reads.
        sampling: How `draw` draws.
        source: Where the weights came from, for messages.
    """

    def __init__(self, pipeline: Any, clips: Mapping[str, Clip], sampling: Sampling, *, source: str):
        self.pipeline, self.sampling, self.source = pipeline, sampling, source
        pipeline.set_progress_bar_config(disable=True)
        for module in self._modules.values():
            module.eval().requires_grad_(False)
        self._parameters = {
            f"{name}/{key}": p for name, module in self._modules.items() for key, p in module.named_parameters()
        }
        self._base = {key: parameter.detach() for key, parameter in self._parameters.items()}  # also inside `loaded`
        self.changes: Mapping[str, Tensor] = NOTHING  # "unet/conv_in.weight" -> a tensor in the component's dtype
        self._digests: dict[str, str] = {}
        self.clips: Mapping[str, Clip] = {
            name: clip.restricted(read(pipeline, name, clip, device=self.device, source=source))
            for name, clip in clips.items()
        }

    @property
    def _modules(self) -> dict[str, nn.Module]:
        found = {name: getattr(self.pipeline, name, None) for name in COMPONENTS}
        return {name: module for name, module in found.items() if module is not None}

    @property
    def clip(self) -> Clip:
        """The CLIP of the first text encoder."""
        return self.clips[ENCODERS[0]]

    @property
    def device(self) -> torch.device:
        """Where the UNet lives."""
        return next(self._modules["unet"].parameters()).device

    def weights(self, component: str) -> dict[str, Tensor]:
        """Parameter name -> tensor of a component ("unet", "text_encoder", ...), as it is now.

        Raises:
            KeyError: No such component.
        """
        if component not in self._modules:
            raise KeyError(f"{component}: {self.source} has no such component, only {', '.join(self._modules)}")
        now, level = {**self._base, **self.changes}, f"{component}/"
        return {key.removeprefix(level): tensor for key, tensor in now.items() if key.startswith(level)}

    def with_weights(self, changes: Mapping[str, Tensor]) -> Diffusion:
        """The same pipeline with some tensors replaced. Its CLIPs stay as they are: `edited` is for text encoders.

        Args:
            changes: "unet/conv_in.weight" -> tensor of that parameter's shape; cast to its dtype.

        Raises:
            KeyError: No such component or parameter.
            ValueError: A shape differs.
        """
        cast = {}
        for key, tensor in changes.items():
            if key not in self._base:
                raise KeyError(f"{key}: not a parameter of {self.source}, which has {', '.join(self._modules)}")
            own = self._base[key]
            if own.shape != tensor.shape:
                raise ValueError(f"{key}: got shape {tuple(tensor.shape)}, want {tuple(own.shape)} as in {self.source}")
            cast[key] = tensor.detach().to(own)
        return self._copy(changes={**self.changes, **cast})

    def edited(self, edit: Edit) -> Diffusion:
        """The pipeline after `edit`: `theta' = fp32(theta) + delta`, cast back, as `muwa.patch.apply` applies it.

        Deltas are named after the CLIP of the first text encoder ("transformer.resblocks.0..."), after that of the second
        ("text_encoder_2/transformer.resblocks.0..."), or after the UNet ("unet/mid_block...").

        Raises:
            KeyError: A delta belongs to no weight of the pipeline.
            ValueError: A shape differs.
        """
        changes: dict[str, Tensor] = {}
        clips = dict(self.clips)
        for component, deltas in by_component(edit.deltas).items():
            now = self.weights(component)
            if component in clips:
                clips[component] = clips[component].edited(replace(edit, deltas=deltas))
                deltas = names.carry(deltas, now)
            for name, delta in deltas.items():
                if name not in now or now[name].shape != delta.shape:
                    self.with_weights({f"{component}/{name}": delta})  # says what is wrong
                changes[f"{component}/{name}"] = now[name].float() + delta.to(now[name].device)
        return self.with_weights(changes)._copy(clips=clips)

    observer: ClassVar[type[ImageGenerator]] = ImageGenerator

    def observe(self, run: Run) -> ImageGenerator:
        """The images that this model generates."""
        return ImageGenerator(self, run)

    def about(self) -> dict[str, object]:
        """Provenance: source, fingerprint, and how images are sampled."""
        return {"source": self.source, "fingerprint": self.fingerprint, "sampling": asdict(self.sampling)}

    def patch_base(self, edit: Edit) -> Clip | Owner:
        """What a patch of `edit` is bound to (`muwa.patch.apply.write_patch`), this being the unedited model.

        The CLIP itself where only the first text encoder is edited: the patch then fits the CLIP too. Otherwise the touched
        weights, keyed as the deltas, with a fingerprint of the components concerned.
        """
        touched = by_component(edit.deltas)
        if set(touched) <= {ENCODERS[0]} and all(name in self.clip.weights for name in edit.deltas):
            return self.clip
        weights = {key: self._owned(key) for key in edit.deltas}
        clips = {name: clip.weights_fingerprint for name, clip in self.clips.items()}
        parts = [
            part for name in sorted(touched) for part in (name, clips.get(name) or self.component_fingerprint(name))
        ]
        return Owner(MappingProxyType(weights), digest(parts))

    def _owned(self, key: str) -> Tensor:
        ((component, own),) = by_component({key: torch.empty(0)}).items()
        weights = self.clips[component].weights if component in self.clips else self.weights(component)
        if (name := next(iter(own))) not in weights:
            raise KeyError(f"{key}: not a parameter of {self.source}")
        return weights[name]

    def sampled(self, **changed: Any) -> Diffusion:
        """The same model that draws otherwise: `steps`, `guidance`, `size`."""
        return self._copy(sampling=replace(self.sampling, **changed))

    def _copy(self, **changed: Any) -> Diffusion:
        other = object.__new__(Diffusion)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k != "fingerprint"} | changed)
        return other

    @contextmanager
    def loaded(self) -> Iterator[Any]:
        """The diffusers pipeline with this model's weights in it, for as long as the context lasts; not for two threads."""
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for key, tensor in self.changes.items():
                parameter = self._parameters[key]
                kept.append((parameter, parameter.data))
                parameter.data = tensor
            yield self.pipeline
        finally:
            for parameter, data in kept:
                parameter.data = data

    @torch.inference_mode()
    def generate(self, prompts: Prompts, *, embeddings: Tensor | None = None) -> Tensor:
        """Draw `prompts`, each from its own seed's noise, made on the CPU: what else is in the batch does not matter.

        Args:
            embeddings: (n, length, d) used in place of the prompts' own (Stable Diffusion 1 and 2 only).

        Returns:
            (n, 3, h, w) uint8 on the CPU.
        """
        seeds = [torch.Generator("cpu").manual_seed(seed) for seed in prompts.seeds]
        size = {"height": self.sampling.size, "width": self.sampling.size} if self.sampling.size else {}
        what: dict[str, Any] = {"prompt": list(prompts.texts)} if embeddings is None else {"prompt_embeds": embeddings}
        if embeddings is not None:
            what["negative_prompt_embeds"] = self.embed([""]).expand(len(embeddings), -1, -1)
        with self.loaded() as pipeline:
            drawn = pipeline(
                **what, **size, generator=seeds, num_inference_steps=self.sampling.steps,
                guidance_scale=self.sampling.guidance, output_type="pt",
            ).images  # fmt: skip
        return (drawn.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(n, length, d): what the UNet is told of each prompt."""
        with self.loaded() as pipeline:
            return pipeline.encode_prompt(prompt=list(texts), **alone(self.device))[0]

    @property
    def batch(self) -> int:
        """LabelledImages drawn at once: as many as make 4,096 latent pixels on a CPU, 32,768 on a GPU."""
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
        """SHA-256 of one component's weights, as they are now."""
        return fingerprint_of_digests({name: self._digest(f"{component}/{name}") for name in self.weights(component)})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all weights and their dtypes, the components' configs, a text's tokens, and how pictures are drawn.

        Not of paths and versions: the same pipeline in another folder is the same.
        """
        parts = [type(self.pipeline).__name__, repr(self.sampling)]
        for name, module in self._modules.items():
            parts += [name, str(next(module.parameters()).dtype), self.component_fingerprint(name)]
        for part in (*self._modules.values(), self.pipeline.scheduler):
            config = dict(part.config) if isinstance(part.config, Mapping) else part.config.to_dict()
            kept = {key: value for key, value in config.items() if key[0] != "_" and key not in _NOT_DRAWN}
            parts += [type(part).__name__, json.dumps(kept, sort_keys=True, default=str)]
        tokenizers = [getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2")]
        tokens = [
            t(_PROBE_TEXT, padding="max_length", truncation=True)["input_ids"] for t in tokenizers if t is not None
        ]
        return digest([*parts, json.dumps(tokens)])

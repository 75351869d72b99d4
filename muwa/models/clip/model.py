"""A CLIP with replaceable weights. It wraps models of open_clip and of Hugging Face alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from muwa.fingerprint import Content, digest
from muwa.models.clip.embeddings import Features
from muwa.models.clip.layers import layers, tower_of
from muwa.models.clip.staged_forward import Activations, StagedForward
from muwa.patch.weights import fingerprint_of_digests, tensor_digest
from muwa.types.edit import Edit
from muwa.types.request import Request
from muwa.types.search import Layer
from muwa.types.short import model_repr

if TYPE_CHECKING:
    from muwa.run import Run

CLOSE = 1e-5  # the largest difference that a staged forward may make to an embedding of length 1
_PROBE_TEXT = "The quick brown fox, 42 jumps over the lazy dog's _back_."


class Towers(nn.Module):
    """Both towers of a model behind one `forward`, so that `functional_call` can replace weights in any call.

    Args:
        model: The whole network.
        vision: Pixels (n, 3, h, w) -> embeddings (n, d), not normalised.
        text: Tokens (n, length) -> embeddings (n, d), not normalised.
    """

    def __init__(
        self, model: nn.Module, vision: Callable[[Tensor], Tensor], text: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.model = model
        self.encode = {"vision": vision, "text": text}  # plain functions, so they are no submodules

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`."""
        return function(*inputs)


@dataclass(frozen=True)
class Preparation(Content):
    """Turns an image into the vision tower's input, as in training: resized and cropped, then scaled.

    Args:
        cut: Resizes and crops: PIL image -> PIL image of the tower's size.
        mean, std: Mean and standard deviation of each colour channel, for values in [0, 1].
    """

    cut: Callable[[Image.Image], Image.Image]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """Resize and crop: (3, h, w) uint8, which takes a quarter of the memory of scaled pixels."""
        return torch.from_numpy(np.array(self.cut(image), copy=True)).permute(2, 0, 1).contiguous()

    def scale(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> float32, as torchvision's ToTensor and Normalize do."""
        mean, std = (torch.tensor(x, device=pixels.device).view(-1, 1, 1) for x in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of how images are cut. Scaling enters the model's `spec` instead."""
        return digest([re.sub(r" at 0x[0-9a-f]+", "", repr(self.cut))])


class Clip(Content):
    """A model with two towers, and its weights.

    It is immutable: `with_weights` and `edited` return a new model that shares all unchanged tensors.

    Args:
        towers: The network, in eval mode. Its parameters are the base weights.
        prepare: Turns images into pixels (3, h, w) uint8, and scales these.
        tokenize: Texts -> tokens (n, length).
        source: Where the weights came from, for messages ("open_clip ViT-B-32 laion400m_e32").
        requests: The requests that the weights carry.
        place: The file or folder of this machine that the weights were read from; None if there is none.
    """

    observer: ClassVar[type[Features]] = Features

    def __init__(
        self,
        towers: Towers,
        prepare: Preparation,
        tokenize: Callable[[list[str]], Tensor],
        *,
        source: str,
        requests: tuple[Request, ...] = (),
        place: Path | None = None,
    ):
        self.requests, self.place = requests, place
        self._towers = towers.eval().requires_grad_(False)
        self.prepare, self.tokenize, self.source = prepare, tokenize, source
        self.weights: Mapping[str, Tensor] = {
            name.removeprefix("model."): p.detach() for name, p in towers.named_parameters()
        }
        self._base = self.weights
        self._digests: dict[str, str] = {}
        self._editable: frozenset[str] | None = None  # None: all weights
        self._staged: dict[str, StagedForward] = {}  # shared with every model derived from this one

    def __repr__(self) -> str:
        changed = [name for name, tensor in self.weights.items() if tensor is not self._base[name]]
        return model_repr(self, self.weights.values(), changed)

    def with_weights(self, new: Mapping[str, Tensor]) -> Clip:
        """The same model with the tensors in `new` in place of its tensors of these names.

        Raises:
            KeyError: A name is not a parameter of the model.
            ValueError: A shape differs.
        """
        for name, tensor in new.items():
            if name not in self.weights:
                raise KeyError(f"{name}: not a parameter of {self.source}")
            if tensor.shape != self.weights[name].shape:
                shape = tuple(self.weights[name].shape)
                raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, want {shape} as in {self.source}")
        other = object.__new__(Clip)
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("fingerprint", "spec")})
        other.weights = {**self.weights, **new}
        other._digests = {name: d for name, d in self._digests.items() if name not in new}
        return other

    @property
    def clips(self) -> Mapping[str, Clip]:
        """The model itself, under the encoder ""."""
        return {"": self}

    def patch_base(self, edit: Edit) -> Clip:
        """The model itself: a patch is bound to all its weights."""
        return self

    def observe(self, run: Run) -> Features:
        """The embeddings of this model."""
        return Features(self, run)

    def about(self) -> dict[str, object]:
        """Provenance: source, fingerprint, fingerprint and number of the weights alone."""
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "weights": self.weights_fingerprint,
            "parameters": sum(tensor.numel() for tensor in self.weights.values()),
        }

    @property
    def unedited(self) -> Clip:
        """The same model with the weights that it was loaded with."""
        return self if self.weights is self._base else self.with_weights(self._base)

    def edited(self, edit: Edit) -> Clip:
        """The model after `edit`: `theta' = theta + delta` in fp32, as in `muwa.patch.apply`."""
        return self.with_weights({n: self.weights[n] + d.to(self.weights[n]) for n, d in edit.deltas.items()})

    def encode(self, tower: str, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Embeddings of a batch: (n, d) fp32, of length 1.

        Args:
            tower: "vision" | "text".
            inputs: Scaled pixels for "vision", tokens for "text".
            weights: Replace the model's weights of these names, for instance by leaves that require
                gradients.
        """
        activations = self.enter(tower, inputs)
        end = self.staged_forward(tower).end
        return F.normalize(self.go(tower, activations, end, weights).x.float(), dim=-1)

    def whole(self, tower: str, inputs: Tensor) -> Tensor:
        """Embeddings (n, d), not normalised, by the tower's own forward: no block is skipped or shortened."""
        replaced = self._replaced(self.weights)
        return functional_call(self._towers, replaced, (self._towers.encode[tower], inputs.to(self.device)))

    def enter(self, tower: str, inputs: Tensor) -> Activations:
        """A batch at position 0 of a tower, without padding if it can be cut; `go` takes it further."""
        staged, inputs = self.staged_forward(tower), inputs.to(self.device)
        if tower == "text" and staged.reduced:
            inputs = inputs[:, : int(staged.lengths(inputs).max())]
        return Activations(inputs, 0, inputs)

    def go(
        self, tower: str, activations: Activations, to: int, weights: Mapping[str, Tensor] | None = None
    ) -> Activations:
        """The activations at position `to` of the tower, as `muwa.models.clip.staged_forward` numbers them.

        Args:
            weights: Replace the model's weights of these names, as in `encode`.
        """
        staged = self.staged_forward(tower)
        current = self.weights if weights is None else {**self.weights, **weights}
        replaced = self._replaced(current)
        if tower == "text" and staged.reduced:
            replaced |= self._cut_to(activations.inputs.shape[1], current)
        return functional_call(self._towers, replaced, (staged.run, activations, to))

    def _replaced(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that differ from the base, under the names that `functional_call` takes."""
        return {f"model.{name}": w for name, w in weights.items() if w is not self._base[name]}

    def _cut_to(self, length: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Position embeddings and causal mask of the text tower, for prompts cut to `length` tokens."""
        positions = {
            f"model.{name}": w[:length]
            for name, w in weights.items()
            if name.endswith("positional_embedding") and tower_of(name) == "text"
        }
        masks = {
            name: mask[:length, :length]
            for name, mask in self._towers.named_buffers()
            if name.endswith("attn_mask") and tower_of(name) == "text"
        }
        return positions | masks

    def staged_forward(self, tower: str) -> StagedForward:
        """The staged forward of a tower. The first call tests on a few inputs which savings it allows."""
        if tower not in self._staged:
            staged = StagedForward(self._towers.model, tower, self._towers.encode[tower])
            with torch.autocast(self.device.type, enabled=False), torch.inference_mode():
                self._staged[tower] = self._tested(staged)
        return self._staged[tower]

    def _tested(self, staged: StagedForward) -> StagedForward:
        """Switch off what changes the tower's embeddings: the savings, then the stages themselves."""
        inputs = self._probe_inputs(staged.tower).to(self.device)
        expected = F.normalize(self._towers.encode[staged.tower](inputs), dim=-1)
        base = object.__new__(Clip)
        base.__dict__.update({**self.__dict__, "weights": self._base, "_staged": {staged.tower: staged}})
        for reduced in (staged.can_reduce, False):
            staged.reduced = reduced
            try:
                if (base.encode(staged.tower, inputs) - expected).abs().max() <= CLOSE:
                    return staged
            except (RuntimeError, IndexError, TypeError, AttributeError):  # this tower cannot be split so
                continue
        staged.blocks, staged.reduced = [], False
        return staged

    def _probe_inputs(self, tower: str) -> Tensor:
        """A few different inputs of a tower: prompts of several lengths, or images of noise."""
        if tower == "text":
            return self.tokenize(["", "one", _PROBE_TEXT])
        noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        return self.prepare.scale(torch.stack([self.prepare(Image.fromarray(image)) for image in noise]))

    def layers(self, granularity: str) -> list[Layer]:
        """The layers that may be edited; `muwa.models.clip.layers.layers` defines `granularity`."""
        heads = {
            name.removeprefix("model."): module.num_heads
            for name, module in self._towers.named_modules()
            if isinstance(getattr(module, "num_heads", None), int)
        }
        found = layers(self.weights, heads, granularity)
        if self._editable is None:
            return found
        return [x for x in found if all(part.name in self._editable for part in x.edited)]

    def restricted(self, names: frozenset[str]) -> Clip:
        """The same model, in which only layers made of the weights `names` may be edited.

        A pipeline may read only a part of a tower; a step in the rest would not change its outputs.
        Gradients, embeddings and fingerprint stay the same.
        """
        other = self.with_weights({})
        other._editable = names
        return other

    @property
    def scale(self) -> Tensor:
        """The factor on cosines in logits, `exp(logit_scale)`: a scalar."""
        return self.weights["logit_scale"].exp()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(iter(self.weights.values())).device

    @cached_property
    def spec(self) -> str:
        """SHA-256 of all but the weights: architecture, image preparation, tokenizer."""
        shape = re.sub(r" at 0x[0-9a-f]+", "", f"{self._towers!r}\n{self.prepare!r}")
        return digest([shape, str(self.tokenize([_PROBE_TEXT]).tolist())])

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = tensor_digest(self.weights[name])
        return self._digests[name]

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights alone. A patch is bound to it."""
        return fingerprint_of_digests({name: self._digest(name) for name in self.weights})

    def tower_fingerprint(self, tower: str) -> str:
        """SHA-256 of one tower's weights and the spec: all that the embeddings of that tower depend on."""
        digests = {name: self._digest(name) for name in self.weights if tower_of(name) == tower}
        return digest([self.spec, tower, fingerprint_of_digests(digests)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and spec."""
        return digest([self.spec, self.weights_fingerprint])

"""A CLIP whose weights can be replaced without touching it: open_clip models and Hugging Face `CLIPModel`s alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
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
from muwa.types.search import Layer

if TYPE_CHECKING:
    from muwa.run import Run

CLOSE = 1e-5  # what running a tower in parts may change of an embedding of length 1
_PROBE_TEXT = "The quick brown fox, 42 jumps over the lazy dog's _back_."


def check_device(device: str) -> None:
    """Refuse a device that is not here.

    Raises:
        ValueError: Says what there is.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA says so by an assertion
        here = f"cpu, {torch.cuda.device_count()} CUDA devices"
        raise ValueError(
            f"runtime.device={device}: not usable here ({str(error).splitlines()[0]}); there is {here}"
        ) from error


class Towers(nn.Module):
    """Both towers of a model behind one `forward`, so that `functional_call` can swap weights for whatever runs inside.

    `vision` maps pixels (n, 3, h, w) and `text` tokens (n, length) to embeddings (n, d), not yet normalised.
    """

    def __init__(
        self, model: nn.Module, vision: Callable[[Tensor], Tensor], text: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.model = model
        self.encode = {"vision": vision, "text": text}  # plain functions: not submodules

    def forward(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """`function(*inputs)`."""
        return function(*inputs)


@dataclass(frozen=True)
class Preparation(Content):
    """From a picture to what the vision tower takes: cut to size, then scaled; as the model was trained.

    Args:
        cut: PIL picture -> PIL picture of the tower's size.
        mean, std: A channel's, of values in [0, 1].
    """

    cut: Callable[[Image.Image], Image.Image]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8: a quarter of the memory of what `scale` makes of it."""
        return torch.from_numpy(np.array(self.cut(image), copy=True)).permute(2, 0, 1).contiguous()

    def scale(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) uint8 -> float32, as torchvision's ToTensor and Normalize."""
        mean, std = (torch.tensor(x, device=pixels.device).view(-1, 1, 1) for x in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)

    @property
    def fingerprint(self) -> str:
        """Of how pictures are cut; how they are scaled is the model's."""
        return digest([re.sub(r" at 0x[0-9a-f]+", "", repr(self.cut))])


class Clip(Content):
    """A two-tower model and its weights. Immutable: `with_weights` and `edited` give a new one that shares the rest.

    Args:
        towers: The network, in eval mode; its own parameters are the base weights.
        prepare: PIL picture -> pixels (3, h, w) uint8, and their scaling.
        tokenize: Texts -> tokens (n, length).
        source: Where the weights came from, for messages ("open_clip ViT-B-32 laion400m_e32").
    """

    def __init__(
        self,
        towers: Towers,
        prepare: Preparation,
        tokenize: Callable[[list[str]], Tensor],
        *,
        source: str,
    ):
        self._towers = towers.eval().requires_grad_(False)
        self.prepare, self.tokenize, self.source = prepare, tokenize, source
        self.weights: Mapping[str, Tensor] = {
            name.removeprefix("model."): p.detach() for name, p in towers.named_parameters()
        }
        self._base = self.weights
        self._digests: dict[str, str] = {}
        self._only: frozenset[str] | None = None
        self._chains: dict[str, StagedForward] = {}  # shared with all that is derived from this model

    def with_weights(self, new: Mapping[str, Tensor]) -> Clip:
        """The same model with the tensors in `new` in place of its own.

        Raises:
            KeyError: A name is not one of the model's parameters.
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

    observer: ClassVar[type[Features]] = Features

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
        """Provenance: source, fingerprint, and the fingerprint of the weights alone."""
        return {"source": self.source, "fingerprint": self.fingerprint, "weights": self.weights_fingerprint}

    @property
    def unedited(self) -> Clip:
        """The same model with the weights that it was loaded with."""
        return self if self.weights is self._base else self.with_weights(self._base)

    def edited(self, edit: Edit) -> Clip:
        """The model after `edit`: `theta' = theta + delta`, in fp32 as `muwa.patch.apply` applies it."""
        return self.with_weights({n: self.weights[n] + d.to(self.weights[n]) for n, d in edit.deltas.items()})

    def encode(self, tower: str, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Embeddings (n, d) of length 1, fp32, of pixels, scaled ("vision"), or tokens ("text").

        Args:
            weights: Used in place of the model's own where given, for instance leaves that require gradients.
        """
        return F.normalize(
            self.go(tower, self.enter(tower, inputs), self.staged_forward(tower).end, weights).x.float(),
            dim=-1,
        )

    def whole(self, tower: str, inputs: Tensor) -> Tensor:
        """The tower's own forward, in which nothing is saved: embeddings (n, d), not normalised."""
        swapped = {
            f"model.{name}": tensor for name, tensor in self.weights.items() if tensor is not self._base[name]
        }
        return functional_call(self._towers, swapped, (self._towers.encode[tower], inputs.to(self.device)))

    def enter(self, tower: str, inputs: Tensor) -> Activations:
        """A batch at position 0 of its way through a tower, padding cut: `go` takes it further."""
        chain, inputs = self.staged_forward(tower), inputs.to(self.device)
        if tower == "text" and chain.lean:
            inputs = inputs[:, : int(chain.lengths(inputs).max())]
        return Activations(inputs, 0, inputs)

    def go(
        self, tower: str, passage: Activations, to: int, weights: Mapping[str, Tensor] | None = None
    ) -> Activations:
        """The passage at position `to` of the tower (`muwa.models.clip.staged_forward`)."""
        now = self.weights if weights is None else {**self.weights, **weights}
        swapped = {f"model.{name}": tensor for name, tensor in now.items() if tensor is not self._base[name]}
        if (
            tower == "text" and self.staged_forward(tower).lean
        ):  # a cut prompt takes positions and mask as short as itself
            length = passage.inputs.shape[1]
            places = {
                f"model.{name}": tensor
                for name, tensor in now.items()
                if name.endswith("positional_embedding")
            }
            masks = {name: mask for name, mask in self._towers.named_buffers() if name.endswith("attn_mask")}
            swapped |= {name: places[name][:length] for name in places if tower_of(name) == tower}
            swapped |= {name: masks[name][:length, :length] for name in masks if tower_of(name) == tower}
        return functional_call(self._towers, swapped, (self.staged_forward(tower).run, passage, to))

    def staged_forward(self, tower: str) -> StagedForward:
        """The tower as a chain, its savings tried once on a few inputs."""
        if tower not in self._chains:
            chain = StagedForward(self._towers.model, tower, self._towers.encode[tower])
            with torch.autocast(self.device.type, enabled=False), torch.inference_mode():
                self._chains[tower] = self._tried(chain)
        return self._chains[tower]

    def _tried(self, chain: StagedForward) -> StagedForward:
        """Keep of a chain what gives the tower's own embeddings."""
        inputs = self._samples(chain.tower).to(self.device)
        own = F.normalize(self._towers.encode[chain.tower](inputs), dim=-1)
        base = object.__new__(Clip)
        base.__dict__.update({**self.__dict__, "weights": self._base, "_chains": {chain.tower: chain}})
        for blocks, lean in ((chain.blocks, chain.can_be_lean), (chain.blocks, False)):
            chain.blocks, chain.lean = blocks, lean
            try:
                if (base.encode(chain.tower, inputs) - own).abs().max() <= CLOSE:
                    return chain
            except (RuntimeError, IndexError, TypeError, AttributeError):  # a tower that does not bear it
                continue
        chain.blocks, chain.lean = [], False
        return chain

    def _samples(self, tower: str) -> Tensor:
        """A few inputs of a tower, unlike each other: prompts of several lengths, noise."""
        if tower == "text":
            return self.tokenize(["", "one", _PROBE_TEXT])
        noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        return self.prepare.scale(torch.stack([self.prepare(Image.fromarray(image)) for image in noise]))

    def layers(self, granularity: str) -> list[Layer]:
        """The candidates to edit: see `muwa.models.clip.layers.layers`."""
        heads = {
            name.removeprefix("model."): module.num_heads
            for name, module in self._towers.named_modules()
            if isinstance(getattr(module, "num_heads", None), int)
        }
        found = layers(self.weights, heads, granularity)
        return [x for x in found if self._only is None or all(part.name in self._only for part in x.edited)]

    def restricted(self, names: frozenset[str]) -> Clip:
        """The same model whose candidates to edit are limited to layers made of the weights `names`.

        A pipeline may read only a part of a tower: a step elsewhere would change nothing that it does. Gradients and
        features are the same, and so is the fingerprint.
        """
        other = self.with_weights({})
        other._only = names
        return other

    @property
    def scale(self) -> Tensor:
        """The temperature `exp(logit_scale)`, a scalar."""
        return self.weights["logit_scale"].exp()

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(iter(self.weights.values())).device

    @cached_property
    def spec(self) -> str:
        """SHA-256 of all but the weights: architecture, picture preparation, tokenizer."""
        shape = re.sub(r" at 0x[0-9a-f]+", "", f"{self._towers!r}\n{self.prepare!r}")
        return digest([shape, str(self.tokenize([_PROBE_TEXT]).tolist())])

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = tensor_digest(self.weights[name])
        return self._digests[name]

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the weights alone: what a patch is bound to."""
        return fingerprint_of_digests({name: self._digest(name) for name in self.weights})

    def tower_fingerprint(self, tower: str) -> str:
        """SHA-256 of one tower and the spec: what that tower's features depend on."""
        own = {name: self._digest(name) for name in self.weights if tower_of(name) == tower}
        return digest([self.spec, tower, fingerprint_of_digests(own)])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights and spec."""
        return digest([self.spec, self.weights_fingerprint])

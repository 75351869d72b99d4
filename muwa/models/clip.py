"""A CLIP whose weights can be replaced without touching it: open_clip models and Hugging Face `CLIPModel`s alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from muwa.content import Content, digest
from muwa.models.layers import layers, tower_of
from muwa.models.weights import fingerprint_of_digests, tensor_digest
from muwa.types import Edit, Layer

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
    """Both towers of a model behind one `forward`, so that `functional_call` can swap weights for either.

    `vision` maps pixels (n, 3, h, w) and `text` tokens (n, length) to embeddings (n, d), not yet normalised.
    """

    def __init__(self, model: nn.Module, vision: Callable[[Tensor], Tensor], text: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model
        self._encode = {"vision": vision, "text": text}  # plain functions: not submodules

    def forward(self, tower: str, inputs: Tensor) -> Tensor:
        """Embeddings (n, d) of `inputs` by `tower` ("vision" | "text")."""
        return self._encode[tower](inputs)


class Clip(Content):
    """A two-tower model and its weights. Immutable: `with_weights` and `edited` give a new one that shares the rest.

    Args:
        towers: The network, in eval mode; its own parameters are the base weights.
        prepare: PIL picture -> pixels (3, h, w), as the model was trained.
        tokenize: Texts -> tokens (n, length).
        source: Where the weights came from, for messages ("open_clip ViT-B-32 laion400m_e32").
    """

    def __init__(
        self,
        towers: Towers,
        prepare: Callable[[Image.Image], Tensor],
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

    def edited(self, edit: Edit) -> Clip:
        """The model after `edit`: `theta' = theta + delta`, in fp32 as `muwa.patch` applies it."""
        return self.with_weights({n: self.weights[n] + d.to(self.weights[n]) for n, d in edit.deltas.items()})

    def encode(self, tower: str, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Embeddings (n, d) of length 1 of pixels ("vision") or tokens ("text").

        Args:
            weights: Used in place of the model's own where given, for instance leaves that require gradients.
        """
        now = self.weights if weights is None else {**self.weights, **weights}
        swapped = {f"model.{name}": tensor for name, tensor in now.items() if tensor is not self._base[name]}
        return F.normalize(functional_call(self._towers, swapped, (tower, inputs.to(self.device))), dim=-1)

    def layers(self, granularity: str) -> list[Layer]:
        """The candidates to edit: see `muwa.models.layers.layers`."""
        heads = {
            name.removeprefix("model."): module.num_heads
            for name, module in self._towers.named_modules()
            if isinstance(getattr(module, "num_heads", None), int)
        }
        return layers(self.weights, heads, granularity)

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

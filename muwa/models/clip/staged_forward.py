"""The forward pass of a tower in stages: it can stop and resume at each block.

A layer search therefore computes the activations before an edited layer once, and for each step only the
layers from it on.

Positions along a tower of N blocks:

- 0: its inputs
- 1 + 2 k: before block k
- 2 + 2 k: inside block k, between attention and MLP
- 2 N + 1: after the last block
- 2 N + 2: its embeddings

The model's own `forward` does the work. The modules that a stage leaves out are replaced during one call. Two
savings change no embedding:

- only the pooled token goes through the queries and the MLP of the last block;
- prompts are cut after the last end of text of the batch, since a causal tower never looks at later tokens.

`muwa.models.clip.model.Clip.staged_forward` tests this on a few inputs before the savings are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from muwa.models.clip.blocks import Call, halves
from muwa.models.clip.layers import tower_of
from muwa.types.short import short_repr

_BLOCK = re.compile(r"^(.*\.(?:resblocks|blocks|layers))\.(\d+)$")
# The last linear map of a tower.
_PROJECTION = re.compile(r"(?:^|\.)(?:visual\.proj|(?:text|visual)_projection(?:\.weight)?)$")


@dataclass(frozen=True)
class Activations:
    """One batch at one position of a tower.

    Args:
        inputs: The tower's inputs. After the first stage of the vision tower only their shape is kept.
        at: The position.
        x: The activations at that position.
        pooled: (n,) index of the token of each input that will be pooled; None where all tokens are needed.
        calls: What the tower passes to each block besides `x`.
        shapes: Module -> shape of its output, for the modules that run before the first block.
    """

    inputs: Tensor
    at: int
    x: Tensor
    pooled: Tensor | None = None
    calls: tuple[Call, ...] = ()
    shapes: Mapping[nn.Module, tuple[int, ...]] | None = None

    __repr__ = short_repr


class _FirstBlockReached(Exception):  # noqa: N818 - no error: it ends a forward at its first block
    def __init__(self, x: Tensor, call: Call):
        self.x, self.call = x, call


class StagedForward:
    """One tower of a model. Call its methods inside `functional_call`, so that edited weights are in place.

    Args:
        model: The whole network. Parameter names are relative to it.
        tower: "vision" | "text".
        encode: The tower's own forward: inputs -> embeddings (n, d), not normalised.

    Attributes:
        blocks: The transformer blocks, from input to output. Empty if the tower cannot be split.
        reduced: Whether the two savings are used.
        tokens: Tokens of one input before the first block; 64 until the first batch.
        width: Length of a token's vector there; 512 until the first batch.
    """

    def __init__(self, model: nn.Module, tower: str, encode: Callable[[Tensor], Tensor]):
        self._encode, self.tower = encode, tower
        modules = {name: module for name, module in model.named_modules() if tower_of(name) == tower}
        numbered = {name: match for name in modules if (match := _BLOCK.match(name))}
        one_stack = len({match[1] for match in numbered.values()}) == 1
        self._names = sorted(numbered, key=lambda name: int(numbered[name][2])) if one_stack else []
        self.blocks = [modules[name] for name in self._names]
        self._halves = [halves(block) for block in self.blocks]
        self.reduced = False
        inside = tuple(f"{name}." for name in self._names)
        self._outside = {
            name: module
            for name, module in modules.items()
            if name not in self._names and not name.startswith(inside)
        }
        self.tokens, self.width = 64, 512
        self._before: set[str] = set()  # names of the modules that run before the first block

    @property
    def end(self) -> int:
        """The position of the embeddings."""
        return 2 * len(self.blocks) + 2

    @property
    def can_reduce(self) -> bool:
        """Whether the last block can be run for the pooled token only."""
        return bool(self.blocks) and (last := self._halves[-1]) is not None and last.pooled is not None

    def lengths(self, inputs: Tensor) -> Tensor:
        """(n,) number of tokens needed of each prompt: up to the end of text if padding is cut, else all."""
        if self.tower == "text" and self.reduced:
            return inputs.argmax(-1) + 1  # the end of text has the highest id
        return torch.full((len(inputs),), inputs.shape[-1])

    def place(self, names: Sequence[str]) -> tuple[int, int | None]:
        """Where the weights `names` act.

        Returns:
            (the last position whose activations depend on none of them, the first position whose activations
            are affine in them). The second is None if there is no such position or if there are several
            weights.
        """
        places = [self._place(name) for name in names]
        start = min(place[0] for place in places)
        return start, places[0][1] if len(set(names)) == 1 else None

    def _place(self, name: str) -> tuple[int, int | None]:
        """`place` of a single weight."""
        for k, prefix in enumerate(self._names if self.blocks else ()):
            if name.startswith(f"{prefix}."):
                known, inner = self._halves[k], name.removeprefix(f"{prefix}.")
                if known is None:
                    return 1 + 2 * k, None
                if inner.startswith(known.second_prefixes):
                    return 2 + 2 * k, 3 + 2 * k if inner == known.second_output else None
                return 1 + 2 * k, 2 + 2 * k if inner == known.first_output else None
        if self.blocks and _PROJECTION.search(name):
            return self.end - 1, self.end
        module = name.rpartition(".")[0]
        # A module that contains the blocks may use its own weights anywhere: only the inputs are before them.
        around = not self.blocks or f"{self._names[0]}.".startswith(f"{module}." if module else "")
        return (0, None) if around or module in self._before else (self.end - 1, None)

    def run(self, activations: Activations, to: int) -> Activations:
        """The activations at a later position `to`.

        If `to` lies inside a block whose halves are unknown, the block runs as a whole: the activations are
        then those after it, at `to` + 1.
        """
        while activations.at < to:
            activations = self._step(activations, to)
        return activations

    def _step(self, activations: Activations, to: int) -> Activations:
        """The activations one stage further.

        A stage ends before the first block, in the middle of a block, after it, or at the embeddings. A block
        is split only if `to` is its middle, or if its second half needs the pooled token only.
        """
        at, x = activations.at, activations.x
        if not self.blocks:
            return replace(activations, at=self.end, x=self._encode(x))
        if at == 0:
            return self._start(activations.inputs)
        if at == self.end - 1:
            return replace(activations, at=self.end, x=self._finish(activations))
        k, middle = divmod(at - 1, 2)
        known = self._halves[k]
        if middle:
            assert known is not None
            return replace(activations, at=at + 1, x=known.second(x))
        call = activations.calls[k]
        if known is not None and activations.pooled is not None and k == len(self.blocks) - 1:
            assert known.pooled is not None
            causal = self.tower == "text"
            return replace(activations, at=at + 1, x=known.pooled(x, activations.pooled, causal))
        if known is not None and to == at + 1:
            return replace(activations, at=to, x=known.first(x, call))
        return replace(activations, at=at + 2, x=self.blocks[k](x, *call[0], **call[1]))

    def _start(self, inputs: Tensor) -> Activations:
        """From the inputs to position 1."""
        shapes: dict[nn.Module, tuple[int, ...]] = {}

        def record_shape(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[module] = tuple(output.shape)

        def stop(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
            raise _FirstBlockReached(x, (args, keywords))

        hooks = [module.register_forward_hook(record_shape) for module in self._outside.values()]
        try:
            with _replaced_forwards({self.blocks[0]: stop}):
                self._encode(inputs)
        except _FirstBlockReached as reached:
            x, call = reached.x, reached.call
        finally:
            for hook in hooks:
                hook.remove()
        self.tokens, self.width = x[0].numel() // x.shape[-1], x.shape[-1]
        self._before = {name for name, module in self._outside.items() if module in shapes}
        if self.tower == "vision":  # the remaining stages need only the shape of the pixels
            inputs = inputs.new_zeros(1).expand(inputs.shape)
        return Activations(inputs, 1, x, self._pooled(inputs), (call,) * len(self.blocks), shapes)

    def _pooled(self, inputs: Tensor) -> Tensor | None:
        """(n,) index of the token that is pooled: the end of text, or the class token of an image."""
        if not self.reduced:
            return None
        if self.tower == "text":
            return inputs.argmax(-1)  # the end of text has the highest id
        return torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)

    def _finish(self, activations: Activations) -> Tensor:
        """From the last block's output to the embeddings: the tower's forward without the earlier layers."""
        x = activations.x
        if activations.pooled is not None and self.tower == "text":
            x = x.expand(-1, activations.inputs.shape[1], -1)  # the tower pools one of these equal tokens

        def skip(given: Tensor, *args: Any, **keywords: Any) -> Tensor:
            return given

        def zeros(shape: tuple[int, ...]) -> Callable[..., Tensor]:
            return lambda *args, **keywords: x.new_zeros(1).expand(shape)

        forwards: dict[nn.Module, Callable[..., Any]] = dict.fromkeys(self.blocks, skip)
        forwards[self.blocks[-1]] = lambda *args, **keywords: x
        forwards |= {module: zeros(shape) for module, shape in (activations.shapes or {}).items()}
        with _replaced_forwards(forwards):
            return self._encode(activations.inputs)


@contextmanager
def _replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of modules inside a `with` block."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward

"""A tower as a chain that can be left and entered at its blocks, so that nothing before an edited layer runs twice.

Positions along a tower of N blocks: 0 its inputs, 1 + 2 k before block k, 2 + 2 k between the halves of block k, 2 N + 1
after the last block, 2 N + 2 its embeddings. The model's own `forward` does the work: what is not wanted of it is replaced
for the time of one call. Two savings change no embedding, and are used where a trial on a few inputs shows that:

- only the row that is pooled goes through the queries and the MLP of the last block;
- prompts are cut after the last end of text of the batch: a causal tower never looks at what follows.
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

_BLOCK = re.compile(r"^(.*\.(?:resblocks|blocks|layers))\.(\d+)$")
_PROJECTION = re.compile(
    r"(?:^|\.)(?:visual\.proj|(?:text|visual)_projection(?:\.weight)?)$"
)  # a tower's last linear map


@dataclass(frozen=True)
class Activations:
    """One batch on its way through a tower: `x` as it is at position `at`."""

    inputs: Tensor  # of pictures, once they are in, the shape alone
    at: int
    x: Tensor
    rows: Tensor | None = None  # the row of each sample that will be pooled
    calls: tuple[Call, ...] = ()  # what the tower hands each block beside x
    shapes: Mapping[nn.Module, tuple[int, ...]] | None = None  # of what the modules before the blocks give


class _Reached(Exception):  # noqa: N818 - no error: how a forward is left at its first block
    def __init__(self, x: Tensor, call: Call):
        self.x, self.call = x, call


class StagedForward:
    """One tower of a model. Run its methods inside `functional_call`, so that edited weights are in place.

    Args:
        model: The whole network; parameter names are relative to it.
        tower: "vision" | "text".
        encode: The tower's own forward: inputs -> embeddings (n, d), not normalised.
    """

    def __init__(self, model: nn.Module, tower: str, encode: Callable[[Tensor], Tensor]):
        self._encode, self.tower = encode, tower
        found = {name: module for name, module in model.named_modules() if tower_of(name) == tower}
        numbered = {name: match for name in found if (match := _BLOCK.match(name))}
        alone = len({match[1] for match in numbered.values()}) == 1
        self._names = sorted(numbered, key=lambda name: int(numbered[name][2])) if alone else []
        self.blocks = [found[name] for name in self._names]
        self._halves = [halves(block) for block in self.blocks]
        self.lean = False  # whether only what is pooled goes through the last block, and padding is cut
        inside = tuple(f"{name}." for name in self._names)
        self._others = {
            name: module
            for name, module in found.items()
            if name not in self._names and not name.startswith(inside)
        }
        self.rows, self.width = 64, 512  # of one input before the first block: seen when a batch goes through
        self._before: set[str] = set()  # names of modules that are done when the first block begins

    @property
    def end(self) -> int:
        """The position of the embeddings."""
        return 2 * len(self.blocks) + 2

    @property
    def can_be_lean(self) -> bool:
        """Whether the last block is one whose pooled row can go through it alone."""
        return bool(self.blocks) and (last := self._halves[-1]) is not None and last.pooled is not None

    def lengths(self, inputs: Tensor) -> Tensor:
        """(n,) how much of each input matters: tokens up to the end of text where padding can be cut, else all."""
        if self.tower == "text" and self.lean:
            return inputs.argmax(-1) + 1
        return torch.full((len(inputs),), inputs.shape[-1])

    def place(self, names: Sequence[str]) -> tuple[int, int | None]:
        """Where weights act: (the last position that none of them changes, the first that is affine in them or None)."""
        places = [self._place(name) for name in names]
        start = min(place[0] for place in places)
        return start, places[0][1] if len(set(names)) == 1 else None

    def _place(self, name: str) -> tuple[int, int | None]:
        for k, prefix in enumerate(self._names if self.blocks else ()):
            if name.startswith(f"{prefix}."):
                known, inner = self._halves[k], name.removeprefix(f"{prefix}.")
                if known is None:
                    return 1 + 2 * k, None
                if inner.startswith(known.second_names):
                    return 2 + 2 * k, 3 + 2 * k if inner == known.second_last else None
                return 1 + 2 * k, 2 + 2 * k if inner == known.first_last else None
        if self.blocks and _PROJECTION.search(name):
            return self.end - 1, self.end
        module = name.rpartition(".")[0]
        around = not self.blocks or f"{self._names[0]}.".startswith(f"{module}." if module else "")
        return (0, None) if around or module in self._before else (self.end - 1, None)

    def _start(self, inputs: Tensor) -> Activations:
        """From inputs to before the first block."""
        shapes: dict[nn.Module, tuple[int, ...]] = {}

        def note(module: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                shapes[module] = tuple(out.shape)

        def reached(x: Tensor, *args: Any, **keywords: Any) -> Tensor:
            raise _Reached(x, (args, keywords))

        hooks = [module.register_forward_hook(note) for module in self._others.values()]
        try:
            with _instead({self.blocks[0]: reached}):
                self._encode(inputs)
        except _Reached as found:
            x, call = found.x, found.call
        finally:
            for hook in hooks:
                hook.remove()
        self.rows, self.width = x[0].numel() // x.shape[-1], x.shape[-1]
        self._before = {name for name, module in self._others.items() if module in shapes}
        if self.tower == "vision":  # from here on only their shape is asked for
            inputs = inputs.new_zeros(1).expand(inputs.shape)
        return Activations(inputs, 1, x, self._rows(inputs), (call,) * len(self.blocks), shapes)

    def _rows(self, inputs: Tensor) -> Tensor | None:
        if not self.lean:
            return None
        text = self.tower == "text"
        return inputs.argmax(-1) if text else torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)

    def run(self, passage: Activations, to: int) -> Activations:
        """The passage at position `to`, further on (a middle of a block only where its halves are known)."""
        while passage.at < to:
            passage = self._step(passage, to)
        return passage

    def _step(self, passage: Activations, to: int) -> Activations:
        at, x = passage.at, passage.x
        if not self.blocks:
            return replace(passage, at=self.end, x=self._encode(x))
        if at == 0:
            return self._start(passage.inputs)
        if at == self.end - 1:
            return replace(passage, at=self.end, x=self._finish(passage))
        k, middle = divmod(at - 1, 2)
        known = self._halves[k]
        if middle:
            assert known is not None
            return replace(passage, at=at + 1, x=known.second(x))
        call = passage.calls[k]
        if known is not None and passage.rows is not None and k == len(self.blocks) - 1:
            assert known.pooled is not None
            return replace(passage, at=at + 1, x=known.pooled(x, passage.rows, self.tower == "text"))
        if known is not None and to == at + 1:
            return replace(passage, at=to, x=known.first(x, call))
        return replace(passage, at=at + 2, x=self.blocks[k](x, *call[0], **call[1]))

    def _finish(self, passage: Activations) -> Tensor:
        """What the tower does behind its blocks: its own forward, in which all before them is left out."""
        x = passage.x
        if passage.rows is not None and self.tower == "text":
            x = x.expand(-1, passage.inputs.shape[1], -1)  # whichever row is pooled, it is this one

        def skipped(given: Tensor, *args: Any, **keywords: Any) -> Tensor:
            return given

        def nothing(shape: tuple[int, ...]) -> Callable[..., Tensor]:
            return lambda *args, **keywords: x.new_zeros(1).expand(shape)

        instead: dict[nn.Module, Callable[..., Tensor]] = dict.fromkeys(self.blocks, skipped)
        instead[self.blocks[-1]] = lambda *args, **keywords: x
        instead |= {module: nothing(shape) for module, shape in (passage.shapes or {}).items()}
        with _instead(instead):
            return self._encode(passage.inputs)


@contextmanager
def _instead(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of modules for a while."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward

"""One tower under edits of one layer: what precedes the layer is computed once, the rest for every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.types.search import Layer

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.models.clip.staged_forward import Activations

MAX_BYTES = (
    2 << 30
)  # of a tower's activations; what does not fit is computed again from the nearest that does


class RemainingLayers:
    """Inputs of one tower, carried to the layers that will be edited.

    Args:
        clip: The unedited model.
        tower: "vision" | "text".
        batches: One tensor a batch: pixels (uint8, as `Clip.prepare` gives them), or tokens.
        layers: What will be edited; activations before these layers are stored. Other layers of the tower
            work too.
        max_bytes: How many bytes of activations are stored.

    Attributes:
        base: (n, d) embeddings of length 1 by the unedited tower, on the CPU, in the order of the batches.
    """

    def __init__(
        self,
        clip: Clip,
        tower: str,
        batches: Sequence[Tensor],
        layers: Sequence[Layer],
        max_bytes: int = MAX_BYTES,
    ):
        self._clip, self._tower, self._batches = clip, tower, batches
        self._end = clip.staged_forward(tower).end
        stops = sorted({self._place(layer)[0] for layer in layers} - {0})
        self._stored: dict[int, list[Activations]] = {}
        base = []
        with torch.inference_mode():
            for i in range(len(batches)):
                activations, room = self._enter(i), max_bytes // len(batches)
                for stop in stops:
                    activations = clip.go(tower, activations, stop)
                    room -= activations.x.nbytes
                    if room >= 0:
                        self._stored.setdefault(stop, []).append(activations)
                base.append(self._embedding(activations))
        self._stored = {stop: states for stop, states in self._stored.items() if len(states) == len(batches)}
        self.base = torch.cat(base)

    def __call__(
        self, layer: Layer, deltas: Callable[[float], Mapping[str, Tensor]], unit: float
    ) -> Callable[[float], Tensor]:
        """The embeddings of all inputs as a function of the step.

        A weight may end its half block, and the half block may be affine in it: W x + step * G x. Both
        products are then computed now.

        Args:
            layer: A layer of this tower.
            deltas: Step -> what it adds to the weights, linear in the step.
            unit: A step that changes the layer well above rounding.

        Returns:
            Step -> (n, d) embeddings of length 1, on the CPU, in the order of the batches.
        """
        start, affine = self._place(layer)
        states = self._states(start)
        if affine is None:
            return lambda step: self._run(states(), self._edited(deltas(step)))
        with torch.inference_mode():
            before = [self._clip.go(self._tower, state, affine) for state in states()]
            edited = self._edited(deltas(unit))
            after = [self._clip.go(self._tower, state, affine, edited).x for state in states()]
            slopes = [(x - state.x) / unit for state, x in zip(before, after, strict=True)]

        def at(step: float) -> Tensor:
            pairs = zip(before, slopes, strict=True)
            return self._run(replace(state, x=state.x + step * slope) for state, slope in pairs)

        return at

    def _place(self, layer: Layer) -> tuple[int, int | None]:
        """(position of the tower before the layer, position after it up to which it is affine or None)."""
        return self._clip.staged_forward(self._tower).place([part.name for part in layer.edited])

    def _enter(self, i: int) -> Activations:
        batch = self._batches[i].to(self._clip.device)
        return self._clip.enter(
            self._tower, self._clip.prepare.scale(batch) if self._tower == "vision" else batch
        )

    def _states(self, start: int) -> Callable[[], Iterable[Activations]]:
        """The inputs at position `start`. Those before it are dropped: a search goes from input to output."""
        inputs = range(len(self._batches))
        if start == 0:
            return lambda: map(self._enter, inputs)
        nearest = max((stop for stop in self._stored if stop <= start), default=0)
        if nearest != start:
            with torch.inference_mode():
                before = self._stored[nearest] if nearest else map(self._enter, inputs)
                self._stored[start] = [self._clip.go(self._tower, state, start) for state in before]
        self._stored = {stop: states for stop, states in self._stored.items() if stop >= start}
        return lambda: self._stored[start]

    def _edited(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self._clip.weights[name] + delta.to(self._clip.weights[name])
            for name, delta in deltas.items()
        }

    @torch.inference_mode()
    def _run(self, states: Iterable[Activations], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        return torch.cat([self._embedding(state, weights) for state in states])

    def _embedding(self, state: Activations, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        return F.normalize(self._clip.go(self._tower, state, self._end, weights).x, dim=-1).cpu()

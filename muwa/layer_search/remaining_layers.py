"""Fast embeddings under edits of one layer: what precedes the layer is computed once, the rest per step."""

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

MAX_BYTES = 2 << 30  # of stored activations per tower; others start from the nearest stored ones


class RemainingLayers:
    """The layers of one tower from an edited one on: what must be computed again for each step.

    The activations of fixed inputs before each layer to edit are computed once and stored.

    Args:
        clip: The unedited model.
        tower: "vision" | "text".
        batches: One tensor per batch: pixels (uint8, as `Clip.prepare` gives them), or tokens.
        layers: The layers that will be edited; the activations before these are stored. Other layers of the
            tower can be edited too, but slower.
        max_bytes: How many bytes of activations are stored at most.

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

        The output of the part of the tower that holds the layer may be affine in the step: W x + step * G x.
        Both products are then computed here, once for all steps.

        Args:
            layer: A layer of this tower.
            deltas: Step -> what that step adds to the weights, linear in the step.
            unit: A step so large that its effect is well above rounding errors; it gives G x.

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
        """(position before the layer, position after it up to which the tower is affine in its weights).

        The second is None if there is no such position.
        """
        return self._clip.staged_forward(self._tower).place([part.name for part in layer.edited])

    def _enter(self, i: int) -> Activations:
        """Batch i at position 0 of the tower."""
        batch = self._batches[i].to(self._clip.device)
        return self._clip.enter(
            self._tower, self._clip.prepare.scale(batch) if self._tower == "vision" else batch
        )

    def _states(self, start: int) -> Callable[[], Iterable[Activations]]:
        """The activations of all batches at position `start`.

        Stored activations before that position are dropped, as a search goes from input to output.
        """
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

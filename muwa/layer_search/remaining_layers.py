"""A tower under edits of one layer: what comes before the layer is computed once, and only what follows for each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from muwa.models.clip.model import Clip
from muwa.models.clip.staged_forward import Activations
from muwa.types.search import Layer

KEEP = (
    2 << 30
)  # bytes of a tower's inner states that are kept; what does not fit is computed again from the nearest that is


class RemainingLayers:
    """One tower's probe inputs, carried to the layers that will be edited.

    Args:
        model: The unedited model.
        tower: "vision" | "text".
        batches: Pixels (uint8, as `Clip.prepare` gives them) or tokens, a batch each.
        layers: What will be edited, for the states to keep; any other layer of the tower can be asked for too.
        keep: Bytes of states to keep.
    """

    def __init__(self, model: Clip, tower: str, batches: Sequence[Tensor], layers: Sequence[Layer], keep: int = KEEP):
        self._model, self._tower, self._batches = model, tower, batches
        self._end = model.staged_forward(tower).end
        stops = sorted({self._place(layer)[0] for layer in layers} - {0})
        self._kept: dict[int, list[Activations]] = {}
        base = []
        with torch.inference_mode():
            for i in range(len(batches)):
                passage, room = self._enter(i), keep // len(batches)
                for stop in stops:
                    passage = model.go(tower, passage, stop)
                    room -= passage.x.nbytes
                    if room >= 0:
                        self._kept.setdefault(stop, []).append(passage)
                base.append(self._embedding(passage))
        self._kept = {stop: states for stop, states in self._kept.items() if len(states) == len(batches)}
        self.base = torch.cat(base)

    def __call__(
        self, layer: Layer, deltas: Callable[[float], Mapping[str, Tensor]], unit: float
    ) -> Callable[[float], Tensor]:
        """The embeddings of all inputs as a function of the step.

        Where the half block that a weight ends is affine in it, W x + step * G x, both products are computed now.

        Args:
            layer: Of this tower.
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
            unedited = [self._model.go(self._tower, state, affine) for state in states()]
            edited = [self._model.go(self._tower, state, affine, self._edited(deltas(unit))).x for state in states()]
            slopes = [(after - before.x) / unit for before, after in zip(unedited, edited, strict=True)]

        def at(step: float) -> Tensor:
            pairs = zip(unedited, slopes, strict=True)
            return self._run(replace(state, x=state.x + step * slope) for state, slope in pairs)

        return at

    def _place(self, layer: Layer) -> tuple[int, int | None]:
        return self._model.staged_forward(self._tower).place([part.name for part in layer.edited])

    def _enter(self, i: int) -> Activations:
        batch = self._batches[i].to(self._model.device)
        return self._model.enter(self._tower, self._model.prepare.scale(batch) if self._tower == "vision" else batch)

    def _states(self, start: int) -> Callable[[], Iterable[Activations]]:
        """The inputs at position `start`; kept ones that lie before it are let go, for searches go with depth."""
        inputs = range(len(self._batches))
        if start == 0:
            return lambda: map(self._enter, inputs)
        nearest = max((stop for stop in self._kept if stop <= start), default=0)
        if nearest != start:
            with torch.inference_mode():
                before = self._kept[nearest] if nearest else map(self._enter, inputs)
                self._kept[start] = [self._model.go(self._tower, state, start) for state in before]
        self._kept = {stop: states for stop, states in self._kept.items() if stop >= start}
        return lambda: self._kept[start]

    def _edited(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._model.weights[name] + delta.to(self._model.weights[name]) for name, delta in deltas.items()}

    @torch.inference_mode()
    def _run(self, states: Iterable[Activations], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        return torch.cat([self._embedding(state, weights) for state in states])

    def _embedding(self, passage: Activations, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        return F.normalize(self._model.go(self._tower, passage, self._end, weights).x, dim=-1).cpu()

"""Which scored layers are worth searching: the Pareto front of high importance and low alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from muwa.layer_search.choice import Acceptance, choose
from muwa.layer_search.gains import layer_gains
from muwa.layer_search.scores import layer_scores
from muwa.patch.names import delta_key
from muwa.types.search import Evaluation, Layer, LayerScore, Search

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.types.gradients import Gradients

TOWERS = ("vision", "text")


def pareto(scores: Mapping[str, LayerScore], tower: str) -> list[str]:
    """The layers of `tower` that no other layer of it beats on both scores, the most important first.

    A layer is beaten when another has strictly larger importance *and* strictly smaller alignment. A tie in
    either score does not beat, so equal layers stay on the front together. O(n log n).

    Args:
        scores: Layer name -> score. A layer without an alignment is not on the front.
        tower: "vision" | "text". Each tower has its own front.

    Returns:
        Names on the front; empty when the tower has no candidate. A layer with zero importance is never on
        it.

    Source: SLUG (arXiv 2407.11867), algorithm 2. Dominance is that of the release, which compares all pairs.

    >>> s = lambda i, a: LayerScore(i, a, a, 1.0, 1.0, 1.0, "text")
    >>> pareto({"a": s(3.0, 0.5), "b": s(2.0, 0.5), "c": s(1.0, 0.6), "d": s(1.0, 0.1)}, "text")
    ['a', 'b', 'd']
    """
    mine = [
        (score.importance, score.alignment, name)
        for name, score in scores.items()
        if score.tower == tower and score.alignment is not None
    ]
    ranked = sorted((row for row in mine if row[0] > 0), key=lambda row: (-row[0], row[1]))
    front, least, tied, level = [], float("inf"), float("inf"), float("inf")
    for importance, alignment, name in ranked:
        if importance < level:  # all rows so far are strictly more important than this one
            least, level = min(least, tied), importance
        if alignment <= least:
            front.append(name)
        tied = min(tied, alignment)
    return front


@dataclass(frozen=True)
class ScoredLayers:
    """All layers of a model that may be edited, with their scores.

    Args:
        layers: Encoder -> layer name -> layer.
        scores: Layer name as `muwa.patch.names.delta_key` writes it -> score. The name of a second encoder
            stands before the names of its layers.
        fronts: Encoder -> names of the layers on the fronts of its towers.
    """

    layers: Mapping[str, Mapping[str, Layer]]
    scores: Mapping[str, LayerScore]
    fronts: Mapping[str, tuple[str, ...]]

    @property
    def front(self) -> tuple[str, ...]:
        """The layers on the fronts of all encoders, named as in `scores`."""
        return tuple(delta_key(encoder, name) for encoder, names in self.fronts.items() for name in names)

    def by_gain(self, encoder: str, towers: Sequence[str]) -> list[Layer]:
        """The layers of some towers of an encoder with a gain above 0, the largest gain first."""
        gains = {
            layer.name: self.scores[delta_key(encoder, layer.name)].gain or 0.0
            for layer in self.layers[encoder].values()
            if layer.tower in towers
        }
        names = sorted((name for name, gain in gains.items() if gain > 0), key=lambda name: -gains[name])
        return [self.layers[encoder][name] for name in names]


def scored_layers(
    model: Editable, gradients: Mapping[str, Gradients], granularity: str, towers: Sequence[str] = TOWERS
) -> ScoredLayers:
    """Score every layer of every encoder, and find the Pareto front of each tower.

    Args:
        gradients: Encoder -> the gradients of its CLIP. Without a retain gradient, the fronts are empty.
        granularity: What counts as one layer (`muwa.models.clip.layers`).
        towers: The towers whose fronts are found, in the order in which the fronts are joined.
    """
    layers: dict[str, dict[str, Layer]] = {}
    scores: dict[str, LayerScore] = {}
    fronts: dict[str, tuple[str, ...]] = {}
    for encoder, clip in model.clips.items():
        layers[encoder] = {layer.name: layer for layer in clip.layers(granularity)}
        of_encoder = _scores(clip.weights, gradients[encoder], list(layers[encoder].values()))
        fronts[encoder] = tuple(name for tower in towers for name in pareto(of_encoder, tower))
        scores |= {delta_key(encoder, name): score for name, score in of_encoder.items()}
    return ScoredLayers(layers, scores, fronts)


def _scores(
    weights: Mapping[str, Tensor], gradients: Gradients, layers: Sequence[Layer]
) -> dict[str, LayerScore]:
    """The scores of layers; SLUG's scores are those of the forget gradient before it was whitened."""
    whitened = gradients.whitened
    if whitened is None:
        return layer_scores(weights, gradients.forget, gradients.retain, layers)
    scores = layer_scores(weights, whitened.forget, gradients.retain, layers)
    gains = layer_gains(weights, gradients.forget, whitened, layers)
    return {name: replace(score, gain=gains.get(name)) for name, score in scores.items()}


def searched(
    concept: str,
    granularity: str,
    scored: ScoredLayers,
    before: Evaluation,
    trace: Sequence[Evaluation],
    acceptance: Acceptance,
) -> Search:
    """The record of a search whose steps were all tried: one of them is chosen by `acceptance`."""
    chosen, why = choose(trace, acceptance)
    return Search(
        concept, acceptance.rule, granularity, scored.scores, scored.front, before, tuple(trace), chosen, why
    )

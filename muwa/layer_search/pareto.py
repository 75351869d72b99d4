"""Which scored layers are worth searching: the Pareto front of high importance and low alignment."""

from __future__ import annotations

from collections.abc import Mapping

from muwa.types.search import LayerScore


def pareto(scores: Mapping[str, LayerScore], tower: str) -> list[str]:
    """Layers of `tower` that no other layer of it beats in both scores, by falling importance.

    A layer is beaten when another has strictly larger importance *and* strictly smaller alignment; ties in either
    never beat, so equal layers stay on the front together. O(n log n).

    Args:
        scores: Layer name -> score.
        tower: "vision" or "text": each tower has its own front.

    Returns:
        Names on the front; empty when the tower has no candidate. A layer with zero importance is never on it.

    Source: SLUG, section 1.4 of the facts (the release's rule, which compares all pairs).

    >>> s = lambda i, a: LayerScore(i, a, a, 1.0, 1.0, 1.0, "text")
    >>> pareto({"a": s(3.0, 0.5), "b": s(2.0, 0.5), "c": s(1.0, 0.6), "d": s(1.0, 0.1)}, "text")
    ['a', 'b', 'd']
    """
    mine = [(score.importance, score.alignment, name) for name, score in scores.items() if score.tower == tower]
    ranked = sorted((row for row in mine if row[0] > 0), key=lambda row: (-row[0], row[1]))
    front, least, tied, level = [], float("inf"), float("inf"), float("inf")
    for importance, alignment, name in ranked:
        if importance < level:  # all rows so far are strictly more important than this one
            least, level = min(least, tied), importance
        if alignment <= least:
            front.append(name)
        tied = min(tied, alignment)
    return front

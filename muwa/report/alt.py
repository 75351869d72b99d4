"""What is seen in each figure of a report, in words: for those who do not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muwa.report.figures import edited_layers, rates_of, search_rates, short_candidate
from muwa.report.text import percent, rounded
from muwa.types.metric import Metric
from muwa.types.search import Search

_NAMED = 4  # layers or rates that are named, of many


def bars(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> str:
    """The bars of rates before and after."""
    rates = [
        f"{name} {percent(before[name].value)} to {percent(after[name].value)} %" for name in rates_of(before)
    ]
    return f"Bars of rates, before to after the edit: {_some(rates)}."


def gains(search: Search) -> str:
    """The bars of gains."""
    gain = {name: score.gain for name, score in search.scores.items() if score.gain}
    best = sorted(gain, key=lambda name: -gain[name])
    chosen = [name for name in best if name in edited_layers(search)]
    text = f"Bars of the gain of {len(best)} layers; the largest are {_some(best)}."
    if not chosen:
        return f"{text} None was edited."
    return f"{text} Edited: {', '.join(f'{name}, number {best.index(name) + 1}' for name in chosen)}."


def pareto(search: Search) -> str:
    """The dots of importance against alignment."""
    chosen = sorted(edited_layers(search) & set(search.scores))
    return (
        f"Dots of importance against alignment for {len(search.scores)} layers. On the Pareto front: "
        f"{_some(search.front)}. Edited: {', '.join(chosen) or 'none'}."
    )


def trace(search: Search) -> str:
    """The lines of rates by the size of the step."""
    layers = {(row.candidate.tower, row.candidate.name) for row in search.trace}
    tried = f"{len(search.trace)} steps on {len(layers)} layers"
    text = f"Lines of rates on the probe set by the size of the step: {tried}."
    if search.chosen is None:
        return f"{text} No step was chosen."
    row = search.trace[search.chosen]
    rates = [f"{label} {percent(each[search.chosen])} %" for _, label, _, _, each in search_rates(search)]
    size = f"{rounded(100 * row.relative_norm, '.3g')} % of the layer"
    return f"{text} Chosen: {short_candidate(row.candidate)}, {size}: {', '.join(rates)}."


def similarity(
    names: Sequence[str],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    forgotten: Sequence[str],
) -> str:
    """The two matrices of similarity."""
    own = [
        f"{name} {before[i][i]:.2f} to {after[i][i]:.2f}" for i, name in enumerate(names) if name in forgotten
    ]
    others = [abs(after[i][i] - before[i][i]) for i, name in enumerate(names) if name not in forgotten]
    text = f"Two heat maps of {len(names)} names. Similarity of images with their own name, before to after: "
    text += f"{_some(own) or 'none of the forgotten is shown'}."
    return f"{text} The other names change by at most {max(others):.2f}." if others else text


def _some(texts: Sequence[str]) -> str:
    """The first few of some texts, and how many more there are."""
    more = len(texts) - _NAMED
    return ", ".join(texts[:_NAMED]) + (f" and {more} more" if more > 0 else "")

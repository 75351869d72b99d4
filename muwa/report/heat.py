"""Who came out how: the names that a sweep forgot (rows) x the rates that its verdicts judge (columns)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muwa.report.runs import Results
from muwa.report.text import percent, rounded
from muwa.types.metric import RATE, still_recognised

ROLES = ("forgotten", "kept", "attack")
STRONGEST = 55  # per cent of the colour of what went wrong, so that the text on it can be read


@dataclass(frozen=True)
class HeatCell:
    """A cell of the heat map.

    Args:
        text: The rate at which the target is still recognised, or the change in points of what is kept.
        value: The same as a number, for sorting.
        colour: How much went wrong, in per cent of the full colour.
    """

    text: str
    value: float
    colour: int


@dataclass(frozen=True)
class Heat:
    """The heat map: names (with the number of their runs) x metrics; None where nothing was measured."""

    metrics: tuple[str, ...]
    rows: Mapping[tuple[str, int], tuple[HeatCell | None, ...]]


def heat(finished: Sequence[Results]) -> Heat | None:
    """The heat map of a sweep's runs; None if they forgot fewer than two different names.

    Several runs of a name (seeds, settings) are one row: the mean. Results of earlier versions, which do not
    say what a metric is about, are left out.
    """
    names: dict[str, list[Results]] = {}
    for found in finished:
        names.setdefault(", ".join(found["task"]["names"]), []).append(found)
    metrics = tuple(
        dict.fromkeys(name for role in ROLES for found in finished for name in _judged(found, role))
    )
    if len(names) < 2 or not metrics:
        return None
    rows = {
        (name, len(runs)): tuple(_cell(runs, metric) for metric in metrics) for name, runs in names.items()
    }
    return Heat(metrics, rows)


def _judged(found: Results, role: str) -> list[str]:
    return [
        name
        for name, metric in found["metrics"]["after"].items()
        if metric.get("role") == role and metric["unit"] == RATE and metric["label"] and metric["n"]
    ]


def _cell(runs: Sequence[Results], name: str) -> HeatCell | None:
    """The mean over runs of one metric."""
    pairs = [
        (run["metrics"]["before"][name], run["metrics"]["after"][name])
        for run in runs
        if name in run["metrics"]["after"]
    ]
    if not pairs:
        return None
    first = pairs[0][1]
    if first["role"] == "kept":
        points = statistics.mean(100 * (after["value"] - before["value"]) for before, after in pairs)
        allowed = max((run.get("verdict") or {}).get("rules", {}).get("kept_points", 5.0) for run in runs)
        lost = points if first["better"] == "lower" else -points
        return HeatCell(rounded(points, "+.1f"), points, _colour(lost / (2 * allowed) if allowed else lost))
    still = statistics.mean(still_recognised(after["value"], after["better"]) for _, after in pairs)
    return HeatCell(f"{percent(still)} %", still, _colour(still))


def _colour(wrong: float) -> int:
    """How much of the colour, for 0 (nothing wrong) to 1 (all wrong, or twice what is allowed was lost).

    >>> _colour(-1.0), _colour(0.5), _colour(3.0)
    (0, 28, 55)
    """
    return round(STRONGEST * min(1.0, max(0.0, wrong)))

"""Who harms whom: what forgetting one name cost each other name, over the runs of a sweep."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from muwa.drafts import write_text
from muwa.report import figures
from muwa.report.drawn import Drawn, draw
from muwa.report.runs import Results, SweptRun, Variant, variant_of
from muwa.report.text import csv_cell, rounded
from muwa.types.metric import still_recognised

WORST = 5  # pairs that are listed in words
COLUMNS = 120  # the most names across a figure: those that lost most
_LONG = ("forgotten", "name", "before", "after", "change, points", "n")


@dataclass(frozen=True)
class NameChange:
    """The accuracy of one name, before and after another was forgotten.

    Args:
        before, after: Rates in [0, 1]; of several seeds, the means.
        n: The number of samples behind each rate.
        own: Whether the name itself was to be forgotten. The rates are then those at which it is still
            recognised.
    """

    before: float
    after: float
    n: int
    own: bool = False

    @property
    def points(self) -> float:
        """The change in percentage points; negative if the name was harmed."""
        return 100 * (self.after - self.before)


@dataclass(frozen=True)
class Harm:
    """The matrix of one method with its settings: what was forgotten (rows) x the names (columns).

    Args:
        title: The method with its settings, and the kind of names where a sweep has several.
        metric: The metric that gives the accuracy of the other names.
        rows: What each run forgot (its names, joined by ", ") -> name -> its change. A name that a run did
            not measure is missing.
        names: All names: the forgotten first, then the others, the most harmed first.
    """

    title: str
    metric: str
    rows: Mapping[str, Mapping[str, NameChange]]
    names: tuple[str, ...]

    def worst(self, count: int = WORST) -> list[tuple[str, str, NameChange]]:
        """(what was forgotten, another name, its change) of the names that lost most."""
        pairs = [
            (row, name, change)
            for row, changes in self.rows.items()
            for name, change in changes.items()
            if not change.own and change.points < 0
        ]
        return sorted(pairs, key=lambda pair: pair[2].points)[:count]


def harms(runs: Sequence[SweptRun]) -> list[Harm]:
    """One matrix for each method, its settings and the kind of names.

    There is none where fewer than two different names were forgotten, or the others were not measured by
    name.
    """
    groups: dict[tuple[Variant, str], dict[str, list[Results]]] = {}
    for run in runs:
        found = run.results
        if found and _metric(found, "kept"):
            requests = groups.setdefault((variant_of(run), found["task"]["kind"]), {})
            requests.setdefault(", ".join(found["task"]["names"]), []).append(found)
    groups = {key: requests for key, requests in groups.items() if len(requests) > 1}
    kinds = {kind for _, kind in groups}
    made = []
    for (variant, kind), requests in groups.items():
        rows = {names: _changes(found) for names, found in requests.items()}
        title = f"{variant.label}, {kind}" if len(kinds) > 1 else variant.label
        made.append(Harm(title, _metric(next(iter(requests.values()))[0], "kept"), rows, _ordered(rows)))
    return made


def _metric(found: Results, role: str) -> str:
    """The first rate of this role that the objective counts and that is known by name; "" without one."""
    before, after = found["metrics"]["before"], found["metrics"]["after"]
    for name, metric in after.items():
        if metric.get("role") == role and metric["in_objective"] and _names(metric) and _names(before[name]):
            return name
    return ""


def _names(metric: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Name -> its rate; empty in results of earlier versions."""
    return metric.get("by_name", {})


def _changes(runs: Sequence[Results]) -> dict[str, NameChange]:
    """Name -> its change over the runs of one request, which differ in their seed."""
    changes: dict[str, NameChange] = {}
    for role, own in (("forgotten", True), ("kept", False)):
        metric = _metric(runs[0], role)
        having = [run for run in runs if metric and _metric(run, role) == metric]
        names = dict.fromkeys(name for run in having for name in _names(run["metrics"]["after"][metric]))
        for name in names:
            before, after = (_rates(having, when, metric, name) for when in ("before", "after"))
            if before and after:
                n = next(n for _, n in after)
                rates = [statistics.mean(rate for rate, _ in each) for each in (before, after)]
                changes[name] = NameChange(rates[0], rates[1], n, own)
    return changes


def _rates(runs: Sequence[Results], when: str, metric: str, name: str) -> list[tuple[float, int]]:
    """(the rate at which a name is recognised, its n) in each run that measured it."""
    found = [run["metrics"][when][metric] for run in runs]
    return [
        (_recognised(one, _names(one)[name]["value"]), _names(one)[name]["n"])
        for one in found
        if name in _names(one)
    ]


def _recognised(metric: Mapping[str, Any], value: float) -> float:
    """A kept rate is one at which a name is recognised already; a rate of forgetting may be its opposite."""
    return still_recognised(value, metric["better"]) if metric["role"] == "forgotten" else value


def _ordered(rows: Mapping[str, Mapping[str, NameChange]]) -> tuple[str, ...]:
    """All names: the forgotten in the order of the rows, then the others, the largest sum of losses first."""
    own = [name for changes in rows.values() for name, change in changes.items() if change.own]
    lost: dict[str, float] = {}
    for changes in rows.values():
        for name, change in changes.items():
            lost[name] = lost.get(name, 0.0) + (0.0 if change.own else change.points)
    others = sorted((name for name in lost if name not in own), key=lambda name: (lost[name], name))
    return tuple(dict.fromkeys([*own, *others]))


def sentences(harm: Harm) -> list[str]:
    """The names that lost most, one sentence each."""
    found = []
    for row, name, change in harm.worst():
        rates = f"{_percent(change.before)} → {_percent(change.after)}, n = {change.n}"
        found.append(f"Forgetting {row} costs {name} {rounded(-change.points, '.1f')} points ({rates}).")
    return found or ["No other name lost accuracy."]


def _percent(rate: float) -> str:
    return f"{rounded(100 * rate, '.1f')} %"


def write(folder: Path, made: Sequence[Harm]) -> list[Drawn | None]:
    """Write harm.csv (the matrices), harm_pairs.csv (one row per pair, with n), and each matrix's figure.

    Returns:
        The figures for the page; None where one could not be drawn.
    """
    names = list(dict.fromkeys(name for harm in made for name in harm.names))
    matrix: list[list[object]] = [["method", "forgotten", *map(csv_cell, names)]]
    long: list[list[object]] = [["method", *_LONG]]
    for harm in made:
        for row, changes in harm.rows.items():
            lead = [csv_cell(harm.title), csv_cell(row)]
            matrix.append([*lead, *(_points(changes[name]) if name in changes else "" for name in names)])
            for name, one in changes.items():
                long.append([*lead, csv_cell(name), one.before, one.after, _points(one), one.n])
    for name, rows in (("harm.csv", matrix), ("harm_pairs.csv", long)):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(folder / name, text.getvalue())
    files = figure_files(folder, made)
    for path in {*folder.glob("harm.png"), *folder.glob("harm_*.png")} - {*files}:
        path.unlink()  # of a time when the sweep had fewer methods
    return [
        draw(partial(figure, harm), path, f"Heat map of changes. {' '.join(sentences(harm))}", whole=True)
        for path, harm in zip(files, made, strict=True)
    ]


def figure_files(folder: Path, made: Sequence[Harm]) -> list[Path]:
    """The file of each matrix's figure: harm.png, or harm_1.png, harm_2.png, ..."""
    return [folder / ("harm.png" if len(made) == 1 else f"harm_{i + 1}.png") for i in range(len(made))]


def _points(change: NameChange) -> float:
    return round(change.points, 6)


def figure(harm: Harm) -> figures.Figure:
    """The matrix as a heat map. Names that no run changed are left out, unless they were forgotten."""
    changes = list(harm.rows.values())
    moved = [
        name
        for name in harm.names
        if any(name in row and (row[name].own or round(row[name].points, 6)) for row in changes)
    ]
    own = {name for row in changes for name in row if row[name].own}
    others = [name for name in moved if name not in own][: max(0, COLUMNS - len(own))]  # the most harmed
    shown = [name for name in moved if name in own or name in others]
    values = [[row[name].points if name in row else np.nan for name in shown] for row in changes]
    forgotten = [[name in row and row[name].own for name in shown] for row in changes]
    left_out = len(harm.names) - len(shown)
    note = (
        f"not shown: {left_out} of {len(harm.names)} names, with no change or the least" if left_out else ""
    )
    return figures.harm(list(harm.rows), shown, np.array(values), np.array(forgotten), note)

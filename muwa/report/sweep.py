"""A sweep as one table: sweep.csv and sweep.html next to its runs, one row per run, with mean ± std."""

from __future__ import annotations

import csv
import io
import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from muwa.data.addresses import hide
from muwa.drafts import write_text
from muwa.json_files import read_json
from muwa.report import figures
from muwa.report.drawn import draw
from muwa.report.heat import heat
from muwa.report.runs import REPEATED, Results, SweptRun, variant_of
from muwa.report.status import DONE, FAILED, STOPPED, UNFINISHED, planned_runs, status_of
from muwa.report.sweep_page import (
    OBJECTIVE,
    POINTS,
    SECONDS,
    STEP,
    Pictures,
    mean_and_deviation,
    number_of,
    write_page,
)
from muwa.report.tables import harm, methods, unlearncanvas, vlm
from muwa.report.text import csv_cell, rounded
from muwa.report.verdicts import is_gone
from muwa.types.metric import RATE, still_recognised
from muwa.types.verdict import word

TABLES = (unlearncanvas, vlm, methods)  # each has `applies(runs)` and `write(folder, runs)`
_SYMBOLS = "os^DvPXp*h"  # of the methods in a figure
_SHARED = ("learning_rate", "checkpoint", "forget_target")  # keys of config.yaml that some methods read


def write_sweep(folder: Path) -> None:
    """Write sweep.csv, sweep.html and the tables that apply, from the runs in `folder`.

    A run is a subfolder with `.hydra/overrides.yaml`. A run without results.json has a row too: it failed,
    was stopped, or is unfinished (at work, in a queue, or killed).
    """
    if not folder.is_dir():
        return
    with FileLock(folder / ".sweep.lock"):  # runs of a sweep may end at the same time
        _write(folder)


def _write(folder: Path) -> None:
    runs = read_runs(folder)
    if not runs:
        return
    rows = list(map(row_of, runs))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _csv(value) for column, value in row.items()} for row in rows)
    write_text(folder / "sweep.csv", text.getvalue())
    finished = [run for run in runs if run.results]
    results = [run.results for run in finished]
    figure, planned = None, planned_runs(folder)
    said = headline(runs, planned)
    if _of_role(results, "forgotten") and _of_role(results, "kept"):
        seen = f"One dot per run: how much is still recognised against what was lost. {said}"
        figure = draw(partial(_figure, finished), folder / "sweep.png", seen, whole=False)
    harms = harm.harms(finished)
    drawn = harm.write(folder, harms) if harms else []
    write_page(
        folder,
        runs,
        rows,
        results=outcomes(finished),
        summary=summary(runs),
        units=units(finished),
        headline=said,
        planned=planned,
        pictures=Pictures(figure, tuple(zip(harms, drawn, strict=True)), heat(results)),
    )
    for table in TABLES:
        if table.applies(finished):
            table.write(folder, finished)


def _csv(value: Any) -> Any:
    return csv_cell(value) if isinstance(value, str) else value


def outcomes(finished: Sequence[SweptRun]) -> list[str]:
    """The columns of `row_of` that say how a run came out.

    The forgotten rates after the edit, the changes of the kept rates, and the objective. Results of earlier
    versions do not say what is forgotten and what is kept: of them, every metric after the edit.
    """
    results = [run.results for run in finished]
    forgotten, kept = _of_role(results, "forgotten"), _of_role(results, "kept")
    if not finished:
        return []
    names = [f"after {name}" for name in forgotten] + [f"change {name}" for name in kept]
    shared = [f"after {name}" for name in results[0]["metrics"]["after"]]
    judged = ["verdict"] if all(found.get("verdict") for found in results) else []
    return [*judged, *(names or shared), "objective"]


def units(finished: Sequence[SweptRun]) -> dict[str, str]:
    """Column of `row_of` -> how its numbers are written (`muwa.report.sweep_page.number_text`).

    Columns of settings, and metrics of earlier versions, which do not say their unit, are missing.
    """
    found = {"objective": OBJECTIVE, "seconds": SECONDS, "step": STEP, "relative_norm": RATE}
    for run in finished:
        for name, metric in run.results["metrics"]["after"].items():
            if unit := metric.get("unit"):
                found |= {f"before {name}": unit, f"after {name}": unit, f"change {name}": POINTS}
    return found


def read_runs(folder: Path) -> list[SweptRun]:
    """The runs of a sweep, in the order of their numbers.

    If a run's method does not read a setting that several methods share (`learning_rate`), the run counts as
    not having it. If all runs that read such a setting agree on its value, it counts as not swept.
    """
    places = sorted((path.parent.parent for path in folder.glob("*/.hydra/overrides.yaml")), key=_order)
    given = list(map(_overrides, places))
    values = {
        key: {one.get(key) for one in given} for key in dict.fromkeys(key for one in given for key in one)
    }
    keys = [key for key, found in values.items() if len(found - ({None} if key in _SHARED else set())) > 1]
    return [
        _read(run, {key: one.get(key, "") for key in keys}) for run, one in zip(places, given, strict=True)
    ]


def _read(run: Path, swept: Mapping[str, str]) -> SweptRun:
    file, (status, why) = run / "results.json", status_of(run)
    results = read_json(file, dict, "the results of a run") if file.is_file() else {}
    return SweptRun(swept, results, run.name, status or (DONE if results else UNFINISHED), why)


def _order(run: Path) -> tuple[int, str]:
    return (int(run.name) if run.name.isdigit() else 10**9, run.name)


def _overrides(run: Path) -> dict[str, str]:
    """Setting -> value, as given on the command line, of the settings that the run's config reads."""
    listed = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text()) or []
    given = dict(hide(one).lstrip("+~").split("=", 1) for one in listed if "=" in one)
    config = run / ".hydra" / "config.yaml"
    text = config.read_text() if config.is_file() else ""
    return {key: value for key, value in given.items() if key not in _SHARED or f"${{{key}}}" in text}


def row_of(run: SweptRun) -> dict[str, Any]:
    """One row of sweep.csv: what was swept, the edit, each metric before and after, the change of each rate.

    Rates are in [0, 1], their changes in points. Results of earlier versions do not say which metrics are
    rates: they have no changes.
    """
    row: dict[str, Any] = {"run": run.name, **run.swept, "status": run.status}
    if run.why:
        row["why"] = run.why
    if not run.results:
        return row
    found = run.results
    before, after, edit = found["metrics"]["before"], found["metrics"]["after"], found["edit"]
    if judged := found.get("verdict"):
        row["verdict"] = word(judged["kind"])
    row |= {
        "names": ", ".join(found["task"]["names"]),
        "tower": edit["tower"],
        "layer": edit["layer"],
        "step": edit["step"],
        "relative_norm": edit["relative_norm"],
        "feasible": all(search["feasible"] for search in found["search"]),
    }
    for name in after:
        row |= {f"before {name}": before[name]["value"], f"after {name}": after[name]["value"]}
        if after[name].get("unit") == RATE:
            row[f"change {name}"] = _points(found, name)
    return {**row, "objective": found["objective"], "seconds": found["seconds"].get("total")}


def summary(runs: Sequence[SweptRun]) -> dict[str, str]:
    """Column of `row_of` -> "mean ± sample std" over the finished runs, for columns of numbers.

    Empty if methods or their settings were swept: a mean over those means nothing.
    """
    if not _alike(runs):
        return {}
    rows, written = list(map(row_of, runs)), units([run for run in runs if run.results])
    cells: dict[str, str] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [
            v for row in rows if isinstance(v := row.get(column), int | float) and not isinstance(v, bool)
        ]
        if values:
            cells[column] = mean_and_deviation(values, written.get(column, ""))
    return cells


def _alike(runs: Sequence[SweptRun]) -> bool:
    """Whether the runs differ only in what was forgotten and in the seed."""
    return all(key in REPEATED for run in runs for key in run.swept)


def headline(runs: Sequence[SweptRun], planned: int | None) -> str:
    """The sweep in words: how many runs forgot and, where runs are alike, the mean changes of kept rates.

    Args:
        planned: How many runs the multirun makes (`muwa.report.status.planned_runs`); None if nobody knows.
    """
    done = [run.results for run in runs if run.results]
    text = f"{_ended(runs, planned)}."
    judged = Counter(word(found["verdict"]["kind"]) for found in done if found.get("verdict"))
    if judged:
        text += f" Verdicts: {', '.join(f'{n} {one}' for one, n in judged.most_common())}."
    names = _of_role(done, "forgotten")
    if names:
        forgot = sum(_forgot(found, names) for found in done)
        text += f" {forgot} of {len(done)} forgot ({', '.join(_goal(done[0], name) for name in names)})."
    for name in _of_role(done, "kept") if _alike(runs) else ():
        changes = [_points(found, name) for found in done]
        change = f"{rounded(statistics.mean(changes), '+.2f')} ± {_std(changes):.2f}"
        text += f" Mean change of {name}: {change} points."
    return text


def _ended(runs: Sequence[SweptRun], planned: int | None) -> str:
    """How many runs ended in which way.

    >>> _ended([SweptRun({}), SweptRun({}, status="stopped")], 6), _ended([SweptRun({})], None)
    ('1 of 6 runs are done, 1 stopped, 4 not started', '1 of 1 runs are done')
    """
    total, counts = number_of(runs, planned), Counter(run.status for run in runs)
    rest = {status: counts[status] for status in (FAILED, STOPPED, UNFINISHED)}
    rest["not started"] = total - len(runs)
    others = [f", {count} {status}" for status, count in rest.items() if count]
    return f"{counts[DONE]} of {total} runs are done{''.join(others)}"


def _of_role(results: Sequence[Results], role: str) -> list[str]:
    """The rates with this role that a report gives a verdict on, in all of the results.

    None where results of earlier versions, which do not say roles, are among them.
    """
    every = [found["metrics"]["after"] for found in results]
    return [
        name
        for name in (every[0] if every else ())
        if all(name in metrics and _has_role(metrics[name], role) for metrics in every)
    ]


def _has_role(metric: Mapping[str, Any], role: str) -> bool:
    return metric.get("role") == role and metric["unit"] == RATE and metric["label"] != ""


def _forgot(found: Results, names: Sequence[str]) -> bool:
    """Whether the target is gone by each of these rates."""
    metrics = [found["metrics"]["after"][name] for name in names]
    return all(is_gone(metric["value"], metric["better"], metric["gone_at"]) for metric in metrics)


def _goal(found: Results, name: str) -> str:
    """What a rate must be to count as forgotten.

    >>> _goal({"metrics": {"after": {"forget/ua": {"better": "higher", "gone_at": 0.05}}}}, "forget/ua")
    'forget/ua ≥ 95 %'
    """
    metric = found["metrics"]["after"][name]
    if metric["better"] == "higher":
        return f"{name} ≥ {100 * (1 - metric['gone_at']):.4g} %"
    return f"{name} ≤ {100 * metric['gone_at']:.4g} %" if metric["gone_at"] else f"{name} = 0"


def _highest(found: Results, names: Sequence[str]) -> float:
    """The highest rate, over these metrics, at which the target is still recognised."""
    metrics = [found["metrics"]["after"][name] for name in names]
    return max(still_recognised(metric["value"], metric["better"]) for metric in metrics)


def _points(found: Results, name: str) -> float:
    """The change of a rate in percentage points."""
    return 100 * (found["metrics"]["after"][name]["value"] - found["metrics"]["before"][name]["value"])


def _std(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _figure(finished: Sequence[SweptRun]) -> figures.Figure:
    """Forgetting against keeping, of runs that have rates of both kinds.

    There is one dot per run and kept rate. Its colour tells the rate and its symbol the method; with a single
    method the symbol tells the rate too. The horizontal position of a run is the highest of its forget
    accuracies.
    """
    done = [run.results for run in finished]
    forget, kept = _of_role(done, "forgotten"), _of_role(done, "kept")
    figure, axes = figures.blank(7.2, 4.2)
    axis = axes[0, 0]
    made_by = list(map(_method, finished))
    methods = list(dict.fromkeys(made_by))
    symbols = dict(zip(methods, itertools.cycle(_SYMBOLS), strict=False))
    for i, name in enumerate(kept):
        colour = (figures.BLUE, figures.GREEN, figures.ORANGE, figures.GREY)[i % 4]
        for method in methods:
            marker = symbols[method] if len(methods) > 1 else _SYMBOLS[i % len(_SYMBOLS)]
            some = [run for run, by in zip(finished, made_by, strict=True) if by == method]
            _dots(axis, some, forget, name, c=colour, marker=marker)
        label = {"color": colour, "label": name}
        axis.plot([], [], "o" if len(methods) > 1 else _SYMBOLS[i % len(_SYMBOLS)], **label)
    for method in methods if len(methods) > 1 else ():
        axis.plot([], [], symbols[method], color="#666666", markerfacecolor="none", label=method)
    axis.axhline(0, color="#999999", linewidth=0.8)
    axis.set_xlim(-4, 104)
    source = f"{'highest of ' if len(forget) > 1 else 'from '}{', '.join(forget)}"
    axis.set_xlabel(f"target still recognised, % ({source})   (left: forgotten)", fontsize=9)
    axis.set_ylabel("change, points   (up: kept)", fontsize=9)
    figure.legend(fontsize=8, loc="outside upper left", ncols=4, frameon=False)
    return figure


def _dots(
    axis: Any, runs: Sequence[SweptRun], forget: Sequence[str], kept: str, *, c: str, marker: str
) -> None:
    """The dots of one method's runs and one kept rate in `_figure`."""
    found = [(run, 100 * _highest(run.results, forget), _points(run.results, kept)) for run in runs]
    dots = axis.scatter([x for _, x, _ in found], [y for *_, y in found], c=c, marker=marker, s=34, alpha=0.8)
    texts = [
        f"run {run.name} ({_method(run)}): {kept} {rounded(y, '+.1f')} points, "
        f"still recognised {rounded(x, '.1f')} %"
        for run, x, y in found
    ]
    figures.hover(dots, texts)


def _method(run: SweptRun) -> str:
    """The name of a run's method, without its package."""
    return variant_of(run).method.rpartition(".")[2]

"""What a run or a sweep prints at its end: one table, the layers that were edited, where the files are."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from muwa.report.page import metric_rows
from muwa.report.runs import SweptRun
from muwa.report.sweep import headline, outcomes, read_runs, row_of
from muwa.report.sweep_page import cells
from muwa.report.verdicts import is_gone, verdicts
from muwa.types.metric import Metric
from muwa.types.report import PATCH, Report

log = logging.getLogger(__name__)
WIDE = 1000  # columns where there is no terminal: nothing is cut or broken into lines
RUNS = 40  # rows of a sweep's table; the rest are in sweep.html
MOVES = 5  # edited layers that are named
FILES = {"report": "report.html", "card": "card.md", "patch": PATCH}  # in the order in which they are named
STYLES = {"good": "green", "bad": "red", "note": ""}


def print_outcome(report: Report) -> None:
    """Print what came out of a run, on stdout, and log it."""
    parts = list(_outcome(report))
    _print(Group(*parts), sys.stdout)
    log.info("what came out:\n%s", as_text(*parts))


def print_sweep(folder: Path) -> None:
    """Print the table of a sweep and where its pages are, on stdout; nothing without runs."""
    runs = read_runs(folder) if folder.is_dir() else []
    if runs:
        _print(Group(*sweep_parts(folder, runs)), sys.stdout)


def as_text(*parts: RenderableType) -> str:
    """What is printed in a pipe: no cell is cut."""
    text = io.StringIO()
    _print(Group(*parts), text)
    return text.getvalue()


def _print(shown: RenderableType, stream: TextIO) -> None:
    """Print in the width of the terminal, or in a pipe so wide that nothing is cut."""
    console = Console(file=stream, highlight=False)
    if not console.is_terminal or isinstance(stream, io.StringIO):
        console = Console(file=stream, highlight=False, width=WIDE, force_terminal=False)
    with console.capture() as captured:
        console.print(shown, crop=False)  # paths are copied: they stay whole
    stream.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")
    stream.flush()


def _outcome(report: Report) -> Iterator[RenderableType]:
    """The first verdict and all bad ones, the table of the verdicts' metrics, the layers, the files."""
    for i, one in enumerate(verdicts(report)):
        if i == 0 or one["kind"] == "bad":
            yield Text(one["text"], style=STYLES[one["kind"]])
    judged = [name for name, metric in report.after.items() if metric.reading.role and metric.reading.label]
    if judged:
        yield metrics_table(report.before, report.after, judged)
    if others := len(report.after) - len(judged):
        what = f"{others} more metric{'s' * (others > 1)}"
        yield Text(f"{what}; what each of them means: report.html", style="dim")
    for move in report.edit.moves[:MOVES]:
        size = f"{100 * move.relative_norm:.1f} % of its norm"
        yield Text(f"edited  {move.layer} ({move.tower}), by {size}, for {move.concept}")
    if len(report.edit.moves) > MOVES:
        yield Text(f"        and {len(report.edit.moves) - MOVES} more layers")
    for what, name in FILES.items():
        if (report.folder / name).is_file():
            yield Text(f"{what:<7} {report.folder / name}", no_wrap=True, overflow="ignore")


def metrics_table(before: Mapping[str, Metric], after: Mapping[str, Metric], names: Collection[str]) -> Table:
    """One row for each metric of `names`, with its verdict in a word or two."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("metric", "", "before", "after", "change", "95 % interval", "n", "verdict"):
        right = heading in ("before", "after", "change", "n")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for row in metric_rows(before, after):
        if (name := row["name"]) in names:
            word, style = _word(before[name], after[name])
            numbers = (row["before"], row["after"], row["change"], row["interval"], str(row["n"]))
            table.add_row(name, after[name].reading.label, *numbers, Text(word, style=style))
    return table


def _word(before: Metric, after: Metric) -> tuple[str, str]:
    """The verdict on a metric in a word or two, and its style."""
    reading = after.reading
    if reading.better == "neither":
        return "", ""
    if reading.role in ("forgotten", "attack"):
        gone = is_gone(after.value, reading.better, reading.gone_at)
        words = {"forgotten": ("forgotten", "still recognised"), "attack": ("withstood", "brought back")}
        return (words[reading.role][0], "green") if gone else (words[reading.role][1], "red")
    if reading.role == "kept":
        inside = after.low is not None and after.high is not None and after.low <= before.value <= after.high
        better = (after.value >= before.value) == (reading.better == "higher")
        return ("kept", "green") if inside or better else ("lost some", "yellow")
    return "", ""


def sweep_parts(folder: Path, runs: Sequence[SweptRun]) -> Iterator[RenderableType]:
    """The headline, one row for each run, and the pages."""
    rows = list(map(row_of, runs))
    swept = list(dict.fromkeys(key for run in runs for key in run.swept))
    named = [] if swept else ["names"]
    results = outcomes([run for run in runs if run.results])
    columns = ["run", *swept, *named, *results, "layer", "status"]
    columns = [name for name in columns if any(row.get(name, "") != "" for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in results else "left", overflow="fold")
    for row in cells(rows[:RUNS], columns):
        table.add_row(*(Text(cell.text, style="red" if cell.style == "worse" else "") for cell in row))
    yield Text(headline(runs))
    yield table
    if len(rows) > RUNS:
        yield Text(f"and {len(rows) - RUNS} more runs", style="dim")
    for name in ("sweep.html", "sweep.csv"):
        yield Text(str(folder / name), no_wrap=True, overflow="ignore")

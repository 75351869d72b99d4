"""What a run or a sweep prints at its end: one table, the layers that were edited, where the files are."""

from __future__ import annotations

import io
import itertools
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.text import Text

from muwa.report.fitted import Column, FittedTable
from muwa.report.page import metric_rows
from muwa.report.runs import SweptRun
from muwa.report.status import planned_runs
from muwa.report.sweep import headline, outcomes, read_runs, row_of, units
from muwa.report.sweep_page import POINTS, cells, heading_of
from muwa.report.verdicts import verdict
from muwa.report.wandb_content import how_to_send
from muwa.types.metric import Metric, Reading
from muwa.types.report import CARD, PATCH, Report
from muwa.types.verdict import BAD, GOOD, NOTE, UNSURE, word

log = logging.getLogger(__name__)
WIDE = 1000  # columns where there is no terminal: nothing is cut or broken into lines
RUNS = 40  # rows of a sweep's table; the rest are in sweep.html
MOVES = 5  # edited layers that are named
FILES = {"report": "report.html", "card": CARD, "patch": PATCH}  # in the order in which they are named
STYLES = {GOOD: "green", UNSURE: "yellow", BAD: "red", NOTE: ""}


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
    """The headline of the verdict and what failed, the table of the judged metrics, layers and files."""
    found = verdict(report)
    yield Text(found.headline, style=STYLES[found.kind])
    for one in found.findings:
        if one.kind == BAD:
            yield Text(one.text, style=STYLES[BAD])
    judged = [name for name, metric in report.after.items() if metric.reading.role and metric.reading.label]
    if judged:
        yield metrics_table(report.before, report.after, judged, found.kinds)
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


def metrics_table(
    before: Mapping[str, Metric],
    after: Mapping[str, Metric],
    names: Collection[str],
    kinds: Mapping[str, str],
) -> FittedTable:
    """One row for each metric of `names`, with its verdict in a word or two.

    Args:
        kinds: `Verdict.kinds`; empty if nobody judged.
    """
    rows = [row for row in metric_rows(before, after, kinds) if row["name"] in names]
    readings = [after[row["name"]].reading for row in rows]

    def column(heading: str, key: str, *, right: bool = False, leaves: int = 0) -> Column:
        return Column(heading, [Text(str(row[key])) for row in rows], right=right, leaves=leaves)

    verdicts = [
        Text(word(row["judged"], reading.role), style=STYLES.get(row["judged"], "dim"))
        for row, reading in zip(rows, readings, strict=True)
    ]
    columns = (
        column("metric", "name"),
        Column("", [Text(_label(reading)) for reading in readings], folds=True, leaves=1),
        column("before", "before", right=True),
        column("after", "after", right=True),
        column("interval", "interval", leaves=2),
        column("change", "change", right=True),
        column("interval", "change_interval", leaves=3),
        column("n", "n", right=True),
        Column("verdict", verdicts, folds=True),
    )
    return FittedTable(columns, "report.html")


def _label(reading: Reading) -> str:
    """The words of a row: its numbers are the metric's own, which may count where the target is not shown."""
    counts_absence = reading.role in ("forgotten", "earlier", "attack") and reading.better == "higher"
    label = f"not {reading.label}" if counts_absence else reading.label
    return f"earlier requests: {label}" if reading.role == "earlier" else label


def sweep_parts(folder: Path, runs: Sequence[SweptRun]) -> Iterator[RenderableType]:
    """The headline, one row for each run, the pages, and how to send W&B what was logged offline."""
    rows = list(map(row_of, runs))
    swept = list(dict.fromkeys(key for run in runs for key in run.swept))
    named = [] if swept else ["names"]
    finished = [run for run in runs if run.results]
    results, written = outcomes(finished), units(finished)
    columns = ["run", *swept, *named, *results, "layer", "status"]
    columns = [name for name in columns if any(row.get(name, "") != "" for row in rows)]
    lines = cells(rows[:RUNS], columns, written)
    leaves = _leaves(swept, results, written)
    table = FittedTable(
        [
            Column(
                heading_of(name),
                [Text(line[i].text, style="red" if line[i].style == "worse" else "") for line in lines],
                right=name in results,
                leaves=leaves.get(name, 0),
            )
            for i, name in enumerate(columns)
        ],
        "sweep.html",
    )
    yield Text(headline(runs, planned_runs(folder)))
    yield table
    if len(rows) > RUNS:
        yield Text(f"and {len(rows) - RUNS} more runs", style="dim")
    for name in ("sweep.html", "sweep.csv"):
        yield Text(str(folder / name), no_wrap=True, overflow="ignore")
    if line := how_to_send(folder, "*/"):
        yield Text(line, no_wrap=True, overflow="ignore")


def _leaves(swept: Sequence[str], results: Sequence[str], written: Mapping[str, str]) -> dict[str, int]:
    """`Column.leaves` of a sweep's columns: the layer leaves first, then the later metrics of each kind.

    The objective and all but the first of the settings follow. The others, such as the verdict, stay.

    Args:
        swept: The settings that were swept.
        results: `outcomes`.
        written: `units`.
    """
    changes = [name for name in results if written.get(name) == POINTS]
    others = [name for name in results if name not in changes and name not in ("verdict", "objective")]
    pairs = itertools.zip_longest(others, changes)
    ranked = [name for pair in pairs for name in pair if name is not None]
    return {name: place for place, name in enumerate([*swept[1:], "objective", *ranked, "layer"], 1)}

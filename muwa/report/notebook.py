"""Results as a notebook shows them: before beside after, a finished run, a sweep. No picture is shown.

Each class has `_repr_html_`, which notebooks call, and prints the same table as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from muwa.json_files import read_json
from muwa.report.page import metric_rows
from muwa.report.runs import SweptRun
from muwa.report.status import planned_runs
from muwa.report.sweep import headline, outcomes, read_runs, row_of, units
from muwa.report.sweep_page import cells, heading_of
from muwa.report.terminal import as_text, metrics_table, sweep_parts
from muwa.report.text import environment
from muwa.types.metric import Metric, NameRate, Reading


@dataclass(frozen=True)
class Comparison:
    """The metrics of the unedited and of the edited model, side by side.

    Raises:
        ValueError: They are not the same metrics.
    """

    before: Mapping[str, Metric]
    after: Mapping[str, Metric]
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unequal := sorted(set(self.before) ^ set(self.after)):
            raise ValueError(f"{', '.join(unequal)}: measured on one model only; evaluate both with one list")

    def __repr__(self) -> str:
        return as_text(metrics_table(self.before, self.after, self.after, self.kinds))

    def _repr_html_(self) -> str:
        return _html("", metric_rows(self.before, self.after, self.kinds))


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a finished run, `outputs/<name>/<date>/<time>`.

    Raises:
        FileNotFoundError: It has no results.json.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "results.json").is_file():
            raise FileNotFoundError(
                f"{self.folder}: no results.json in it; want the folder of a run, with its stage report"
            )

    @cached_property
    def results(self) -> dict[str, Any]:
        """The content of results.json (docs/results_schema.md)."""
        return read_json(self.folder / "results.json", dict, "the results of a run")

    @cached_property
    def comparison(self) -> Comparison:
        """Its metrics before and after the edit."""
        metrics = self.results["metrics"]
        before, after = (
            {name: _metric(one) for name, one in metrics[when].items()} for when in ("before", "after")
        )
        return Comparison(before, after, self.results.get("verdict", {}).get("kinds", {}))

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.comparison!r}\n{self.folder / 'report.html'}"

    def _repr_html_(self) -> str:
        rows = metric_rows(self.comparison.before, self.comparison.after, self.comparison.kinds)
        return _html(self._title(), rows, str(self.folder / "report.html"))

    def _title(self) -> str:
        layers = ", ".join(move["layer"] for move in self.results["edit"]["moves"]) or "nothing"
        return f"Forgetting {', '.join(self.results['task']['names'])}; edited: {layers}"


@dataclass(frozen=True)
class FinishedSweep:
    """The folder of a multirun.

    Raises:
        FileNotFoundError: No run is in it.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self._runs:
            raise FileNotFoundError(
                f"{self.folder}: no run in it; want the folder of a multirun, with 0/, 1/, ..."
            )

    @cached_property
    def _runs(self) -> list[SweptRun]:
        return read_runs(self.folder)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One mapping for each run, as the rows of sweep.csv: `pandas.DataFrame(sweep.rows)`."""
        return list(map(row_of, self._runs))

    def __repr__(self) -> str:
        return as_text(*sweep_parts(self.folder, self._runs))

    def _repr_html_(self) -> str:
        swept = list(dict.fromkeys(key for run in self._runs for key in run.swept))
        finished = [run for run in self._runs if run.results]
        results = outcomes(finished)
        columns = ["run", *(swept or ["names"]), *results, "layer", "status"]
        columns = [name for name in columns if any(row.get(name, "") != "" for row in self.rows)]
        return (
            environment()
            .get_template("notebook.html")
            .render(
                title=headline(self._runs, planned_runs(self.folder)),
                headings=list(map(heading_of, columns)),
                rows=[[cell.text for cell in row] for row in cells(self.rows, columns, units(finished))],
                page=str(self.folder / "sweep.html"),
            )
        )


def compare(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> Comparison:
    """Two results of `muwa.evaluate` side by side: of the unedited and of the edited model."""
    return Comparison(before, after)


def read_run(folder: str | Path) -> FinishedRun:
    """A finished run, for a notebook. Its `results` are the content of results.json."""
    return FinishedRun(Path(folder))


def read_sweep(folder: str | Path) -> FinishedSweep:
    """A multirun, for a notebook. Its `rows` are those of sweep.csv."""
    return FinishedSweep(Path(folder))


def _metric(record: Mapping[str, Any]) -> Metric:
    """A metric from its record in results.json. What an earlier version did not write has its default."""
    known = {field.name for field in fields(Reading)} & set(record)
    reading = Reading(
        text=record.get("reads", ""), **{name: record[name] for name in known - {"text", "caveat"}}
    )
    rates = {name: NameRate(**rate) for name, rate in record.get("by_name", {}).items()}
    numbers = {name: record[name] for name in ("value", "n", "low", "high")}
    return Metric(**numbers, reading=reading, capped=record.get("capped", False), by_name=rates)


def _html(title: str, rows: list[dict[str, Any]], page: str = "") -> str:
    keys = {"name": "metric", "before": "before", "after": "after", "change": "change",
            "interval": "95 % interval after", "n": "n", "reads": "how to read it"}  # fmt: skip
    return (
        environment()
        .get_template("notebook.html")
        .render(
            title=title,
            headings=list(keys.values()),
            rows=[[row[key] for key in keys] for row in rows],
            page=page,
        )
    )

"""The table of a sweep over styles and classes, in UnlearnCanvas' format, with the published rows."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path

from muwa.drafts import write_text
from muwa.report.runs import Results, SweptRun, Variants, grouped, unedited
from muwa.report.text import csv_cell

PUBLISHED = Path(__file__).parent / "published" / "unlearncanvas.csv"
KINDS = ("style", "class")
RATES = {"UA": "forget/ua", "IRA": "retain/ira", "CRA": "retain/cra"}  # column of the benchmark -> metric
FID = "quality/fid"
# The features of a distance -> its column. The published distances are on features of Inception.
FID_COLUMNS = {"Inception": "FID", "CLIP": "FID (CLIP features)"}
NOTE = (
    "\nRates in per cent, mean over the styles (classes) to forget. "
    "Published: other models, data and machines. "
    "FIDs on features of CLIP are not comparable with FIDs on features of Inception.\n"
)


def applies(runs: Sequence[SweptRun]) -> bool:
    """Whether a run forgot a style or a class, and measured the benchmark's rates."""
    return any(map(_belongs, runs))


def write(folder: Path, runs: Sequence[SweptRun]) -> None:
    """Write unlearncanvas.csv and unlearncanvas.md from the runs that forgot a style or a class."""
    rows = [*measured(grouped([run for run in runs if _belongs(run)])), *published()]
    columns = list(rows[0])  # a published row has no FID on features of CLIP
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: csv_cell(cell) for column, cell in row.items()} for row in rows)
    write_text(folder / "unlearncanvas.csv", text.getvalue())
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(column) or "-" for column in columns) + " |" for row in rows]
    write_text(folder / "unlearncanvas.md", "\n".join(lines) + "\n" + NOTE)


def _belongs(run: SweptRun) -> bool:
    return run.results["task"]["kind"] in KINDS and RATES["UA"] in run.results["metrics"]["after"]


def measured(variants: Variants) -> list[dict[str, str]]:
    """One row per variant, in the columns of the published table; the unedited model comes first."""
    rows = [_row(label, runs, "before") for label, runs in unedited(variants).items()]
    return rows + [_row(variant.label, runs, "after") for variant, runs in variants.items()]


def _row(label: str, runs: Sequence[Results], when: str) -> dict[str, str]:
    """The means of `runs`, `when` "before" or "after" the edit; what the method cost only after it."""
    row = {"method": f"muwa {label}"}
    for kind in KINDS:
        for column, metric in RATES.items():
            found = [run["metrics"][when][metric] for run in runs if _has(run, when, metric, kind)]
            row[f"{kind} {column}"] = _mean([100 * one["value"] for one in found])
    distances = [run["metrics"][when][FID] for run in runs if FID in run["metrics"][when]]
    for features, column in FID_COLUMNS.items():  # other features, and unknown ones, are in no column
        row[column] = _mean([one["value"] for one in distances if one.get("features") == features])
    costs = [run["cost"] for run in runs] if when == "after" else []
    row["seconds"] = _mean([cost["seconds"] for cost in costs])
    row["memory GB"] = _mean([cost["peak_memory_bytes"] / 1e9 for cost in costs])
    row["storage GB"] = _mean([cost["bytes"] / 1e9 for cost in costs], "{:.5f}")
    row["source"] = f"this sweep, {len(runs)} runs, {runs[0]['provenance']['model']['source']}"
    return row


def _has(run: Results, when: str, metric: str, kind: str) -> bool:
    return run["task"]["kind"] == kind and metric in run["metrics"][when]


def published() -> list[dict[str, str]]:
    """The published rows, each with its source."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def _mean(values: Sequence[float], form: str = "{:.2f}") -> str:
    return form.format(statistics.mean(values)) if values else ""

"""A multirun as one table: sweep.csv and sweep.html beside its runs, one row a run, mean ± std."""

from __future__ import annotations

import base64
import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from matplotlib.figure import Figure

from muwa.report import figures
from muwa.report.page import environment, write_text
from muwa.report.tables.methods import REPEATED, write_methods_table
from muwa.report.tables.unlearncanvas import write_canvas_table
from muwa.report.tables.vlm import write_vlm_table

_SHARED = ("learning_rate", "checkpoint", "forget_target")  # keys of conf/config.yaml that some methods read
_CHANGES = ("retain/top1", "retain/top5", "utility/top1", "retain/ira", "retain/cra")


def write_sweep(folder: Path) -> None:
    """Write sweep.csv and sweep.html from the runs below `folder` (`*/results.json`, `*/.hydra/overrides.yaml`).

    A run without results keeps its row: it failed, or it is unfinished: at work, in a queue, or killed.
    """
    if not folder.is_dir():
        return
    with FileLock(folder / ".sweep.lock"):  # runs side by side end at any time
        _write(folder)


def end_run(run: Path, *, done: bool) -> None:
    """Leave word in a run's folder that it ended by itself."""
    write_text(run / ".hydra" / "status.txt", "done" if done else "failed")


def _write(folder: Path) -> None:
    rows = read_runs(folder)
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "sweep.csv", text.getvalue())
    page = environment().get_template("sweep.html").render(
        name=folder.parent.parent.name, columns=columns, rows=rows, summary=summary(rows, columns), headline=headline(rows),
        figure=_figure(rows),
    )  # fmt: skip
    write_text(folder / "sweep.html", page)
    finished = [(own, json.loads((run / "results.json").read_text())) for run, own in swept(folder)
                if (run / "results.json").is_file()]  # fmt: skip
    for write in (write_canvas_table, write_vlm_table, write_methods_table):
        write(folder, finished)


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """One row a run, in the order of their numbers: what was swept, the edit, metrics before, after and their change.

    Accuracies keep their unit ([0, 1]); columns named "change ..." are in points.
    """
    rows = []
    for run, overrides in swept(folder):
        row: dict[str, Any] = {"run": run.name, **overrides}
        results, status = run / "results.json", run / ".hydra" / "status.txt"
        row["status"] = status.read_text() if status.is_file() else "unfinished"
        row |= _result(json.loads(results.read_text())) if results.is_file() else {}
        rows.append(row)
    return rows


def swept(folder: Path) -> list[tuple[Path, dict[str, str]]]:
    """(run's folder, what was swept and its value there, "" where a run has none), in the order of their numbers.

    A setting of all methods (`learning_rate`) that a run's own method does not read counts as not given there, and as not
    swept where the others agree.
    """
    runs = sorted((path.parent.parent for path in folder.glob("*/.hydra/overrides.yaml")), key=_order)
    every = [_overrides(run) for run in runs]
    values = {key: {one.get(key) for one in every} for key in dict.fromkeys(k for one in every for k in one)}
    keys = [key for key, found in values.items() if len(found - ({None} if key in _SHARED else set())) > 1]
    return [(run, {key: one.get(key, "") for key in keys}) for run, one in zip(runs, every, strict=True)]


def _order(run: Path) -> tuple[int, str]:
    return (int(run.name) if run.name.isdigit() else 10**9, run.name)


def _overrides(run: Path) -> dict[str, str]:
    listed = yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text()) or []
    found = dict(one.lstrip("+~").split("=", 1) for one in listed if "=" in one)
    config = run / ".hydra" / "config.yaml"
    text = config.read_text() if config.is_file() else ""
    return {key: value for key, value in found.items() if key not in _SHARED or f"${{{key}}}" in text}


def _result(found: dict[str, Any]) -> dict[str, Any]:
    before, after = found["metrics"]["before"], found["metrics"]["after"]
    row = {
        "status": "done", "names": ", ".join(found["task"]["names"]), "tower": found["edit"]["tower"],
        "layer": found["edit"]["layer"], "step": found["edit"]["step"], "relative_norm": found["edit"]["relative_norm"],
        "feasible": all(search["feasible"] for search in found["search"]),
    }  # fmt: skip
    for name in after:
        row |= {f"before {name}": before[name]["value"], f"after {name}": after[name]["value"]}
        if figures.is_rate(name):
            row[f"change {name}"] = 100 * (after[name]["value"] - before[name]["value"])
    return {**row, "objective": found["objective"], "seconds": found["seconds"].get("total")}


def summary(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> dict[str, str]:
    """Column -> "mean ± sample std" over the runs that are done, of columns of numbers; none where runs are not alike."""
    found: dict[str, str] = {}
    if not _alike(rows):
        return found
    for column in columns:
        values = [v for row in rows if isinstance(v := row.get(column), int | float) and not isinstance(v, bool)]
        if values and column != "run":
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            found[column] = f"{statistics.mean(values):.4g} ± {spread:.2g}"
    return found


def _alike(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether only requests and seeds were swept: a mean over methods or their settings is of nothing."""
    return all(key in ("run", *REPEATED) for row in rows for key in list(row)[: list(row).index("status")])


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """The sweep in a sentence or two, with mean changes where the runs are alike."""
    done = [row for row in rows if row["status"] == "done"]
    text = f"{len(done)} of {len(rows)} runs are done."
    gone = [row for row in done if row.get("after forget/top5") == 0]
    if done and "after forget/top5" in done[0]:
        text += f" {len(gone)} of {len(done)} reach forget/top5 = 0."
    for name in _CHANGES if _alike(rows) else ():
        values = [row[f"change {name}"] for row in done if f"change {name}" in row]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            text += f" Mean change of {name}: {statistics.mean(values):+.2f} ± {spread:.2f} points."
    return text


def _figure(rows: Sequence[dict[str, Any]]) -> str | None:
    """Forgetting against keeping, a dot a run, as an embedded PNG."""
    done = [row for row in rows if "after forget/top5" in row and "change retain/top1" in row]
    if not done:
        return None
    figure: Figure
    figure, axes = figures.blank(7.2, 4.2)
    axis = axes[0, 0]
    for name, colour, marker in (("retain/top1", figures.BLUE, "o"), ("utility/top1", figures.GREEN, "s")):
        if f"change {name}" in done[0]:
            axis.scatter([100 * row["after forget/top5"] for row in done], [row[f"change {name}"] for row in done],
                         c=colour, marker=marker, s=34, alpha=0.8, label=f"{name}")  # fmt: skip
    axis.axhline(0, color="#999999", linewidth=0.8)
    axis.set_xlim(-4, 104)
    axis.set_xlabel("forget/top5 after, %   (left: forgotten)", fontsize=9)
    axis.set_ylabel("change, points   (up: kept)", fontsize=9)
    axis.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""The runs of a sweep over styles and classes as UnlearnCanvas prints them: one row a method and its settings,
beside the published rows."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.report.page import write_text
from muwa.report.tables.methods import Run, Variants, grouped, unedited

PUBLISHED = Path(__file__).parent / "published" / "unlearncanvas.csv"
_RATES = {"UA": "forget/ua", "IRA": "retain/ira", "CRA": "retain/cra"}
_FID, _CLIP_FID = "FID", "FID (CLIP features)"  # published ones are of Inception's features: other numbers altogether


def write_canvas_table(folder: Path, runs: Sequence[Run]) -> None:
    """Write unlearncanvas.csv and unlearncanvas.md, if any of `runs` forgot a style or a class."""
    mine = [(swept, run) for swept, run in runs if _belongs(run)]
    if not mine:
        return
    rows = [*measured(grouped(mine)), *published()]
    columns = list(rows[0])  # a published row has no FID of CLIP features
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "unlearncanvas.csv", text.getvalue())
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row.get(column) or "-" for column in columns) + " |" for row in rows]
    note = (
        "\nRates in per cent, mean over the forgotten styles (classes). Published: other models, data and machines. "
        "FIDs of CLIP's features are not comparable with FIDs of Inception's.\n"
    )
    write_text(folder / "unlearncanvas.md", "\n".join(lines) + "\n" + note)


def _belongs(run: Mapping[str, Any]) -> bool:
    return run["task"]["kind"] in ("style", "class") and "forget/ua" in run["metrics"]["after"]


def measured(variants: Variants) -> list[dict[str, str]]:
    """One row a method and its settings, in the columns of the published table; first the unedited model, a request once."""
    rows = []
    first = unedited(variants)
    for name, mine in {**first, **variants}.items():
        when = "before" if name in first else "after"
        row = {"method": f"muwa {name}"}
        for kind in ("style", "class"):
            for short, metric in _RATES.items():
                values = [
                    run["metrics"][when].get(metric, {}).get("value") for run in mine if run["task"]["kind"] == kind
                ]
                row[f"{kind} {short}"] = _mean([100 * value for value in values if value is not None])
        fids = [v for run in mine if (v := run["metrics"][when].get("quality/fid"))]
        for column in (_FID, _CLIP_FID):
            row[column] = _mean([fid["value"] for fid in fids if _fid_column(fid["reads"]) == column])
        edited = [] if name in first else mine
        row["seconds"] = _mean([run["cost"]["seconds"] for run in edited])
        row["memory GB"] = _mean([run["cost"]["peak_memory_bytes"] / 1e9 for run in edited])
        row["storage GB"] = _mean([run["cost"]["bytes"] / 1e9 for run in edited], "{:.5f}")
        row["source"] = f"this sweep, {len(mine)} runs, {mine[0]['provenance']['model']['source']}"
        rows.append(row)
    return rows


def _fid_column(reads: str) -> str | None:
    """Whose features a FID is of, as `muwa.eval.images.quality.distances` says; None for neither Inception's nor CLIP's.

    >>> _fid_column("FID ..., on features that are CLIP's, not Inception's")
    'FID (CLIP features)'
    >>> _fid_column("FID ..., on features that are NoTrainInceptionV3's")
    'FID'
    """
    whose = reads.rpartition("features that are ")[2]
    return _CLIP_FID if whose.startswith("CLIP") else _FID if "Inception" in whose else None


def published() -> list[dict[str, str]]:
    """The published rows, each with its source."""
    with PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def _mean(values: Sequence[float], form: str = "{:.2f}") -> str:
    return form.format(statistics.mean(values)) if values else ""

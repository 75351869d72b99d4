"""The runs of a sweep over identities as SLUG's table of vision-language models: a row an identity, before and after."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muwa.report import write_text

FIRST = ("forget/answered", "retain/answered", "utility/answered")
_WHOLE = ("mme/perception", "mme/cognition", "pope/f1")  # of benchmarks, beside */accuracy
PUBLISHED = (
    "Published for LLaVA-1.5 7B (SLUG, arXiv 2407.11867): mean forget accuracy of ten identities 99.50 -> "
    "2.8 %; another model and other data."
)


def write_vlm_table(folder: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write vlm.md, if any of `runs` (their results.json) asked a model who somebody is."""
    mine = [run for run in runs if "forget/answered" in run["metrics"]["after"]]
    if not mine:
        return
    columns = metrics_of(mine)
    lines = ["| forgotten | " + " | ".join(columns) + " | seconds |", "|---|" + "---|" * (len(columns) + 1)]
    for run in mine:
        cells = [_cell(run, column) for column in columns]
        lines.append(f"| {', '.join(run['task']['names'])} | {' | '.join(cells)} | {run['cost']['seconds']:.1f} |")
    means = []
    for column in columns:
        means.append(" → ".join(_show(column, statistics.mean(run["metrics"][when][column]["value"] for run in mine))
                                for when in ("before", "after")))  # fmt: skip
    seconds = statistics.mean(run["cost"]["seconds"] for run in mine)
    lines.append(f"| **mean of {len(mine)}** | {' | '.join(means)} | {seconds:.1f} |")
    source = mine[0]["provenance"]["model"]["source"]
    note = f"\nOf {source}; before → after, rates in per cent. Seconds: of the method alone.\n{PUBLISHED}\n"
    write_text(folder / "vlm.md", "\n".join(lines) + "\n" + note)


def metrics_of(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Metrics that every run has: the three answered rates, then each benchmark's score."""
    shared = [name for name in runs[0]["metrics"]["after"] if all(name in run["metrics"]["after"] for run in runs)]
    scores = [name for name in shared if name in _WHOLE or name.endswith("/accuracy")]
    return [*(name for name in FIRST if name in shared), *scores]


def _cell(run: dict[str, Any], metric: str) -> str:
    return " → ".join(_show(metric, run["metrics"][when][metric]["value"]) for when in ("before", "after"))


def _show(metric: str, value: float) -> str:
    return f"{value:.0f}" if metric.startswith("mme/") else f"{100 * value:.1f}"

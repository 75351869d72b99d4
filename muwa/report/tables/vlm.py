"""The runs of a sweep over identities as SLUG's table of vision-language models: a row an identity, before and after."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.report.page import write_text
from muwa.report.tables.methods import Run, grouped

FIRST = ("forget/answered", "retain/answered", "utility/answered")
_WHOLE = ("mme/perception", "mme/cognition", "pope/f1")  # of benchmarks, beside */accuracy
PUBLISHED = (
    "Published for LLaVA-1.5 7B (SLUG, arXiv 2407.11867): mean forget accuracy of ten identities 99.50 -> "
    "2.8 %; another model and other data."
)


def write_vlm_table(folder: Path, runs: Sequence[Run]) -> None:
    """Write vlm.md, if any of `runs` asked a model who somebody is; where methods were swept, one after the other."""
    mine = [(swept, run) for swept, run in runs if "forget/answered" in run["metrics"]["after"]]
    if not mine:
        return
    columns, variants = metrics_of([run for _, run in mine]), grouped(mine)
    named = len(variants) > 1
    head = [*(["method"] if named else []), "forgotten", *columns, "seconds"]
    rows = [head, ["---"] * len(head)]
    for label, found in variants.items():
        lead = [label] if named else []
        for run in found:
            cells = [_cell([run], column) for column in columns]
            rows.append([*lead, ", ".join(run["task"]["names"]), *cells, f"{run['cost']['seconds']:.1f}"])
        seconds = statistics.mean(run["cost"]["seconds"] for run in found)
        cells = [_cell(found, column) for column in columns]
        rows.append([*lead, f"**mean of {len(found)}**", *cells, f"{seconds:.1f}"])
    source = mine[0][1]["provenance"]["model"]["source"]
    note = f"\nOf {source}; before → after, rates in per cent. Seconds: of the method alone.\n{PUBLISHED}\n"
    write_text(folder / "vlm.md", "".join(f"| {' | '.join(row)} |\n" for row in rows) + note)


def metrics_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Metrics that every run has: the three answered rates, then each benchmark's score."""
    shared = [name for name in runs[0]["metrics"]["after"] if all(name in run["metrics"]["after"] for run in runs)]
    scores = [name for name in shared if name in _WHOLE or name.endswith("/accuracy")]
    return [*(name for name in FIRST if name in shared), *scores]


def _cell(runs: Sequence[Mapping[str, Any]], metric: str) -> str:
    means = [statistics.mean(run["metrics"][when][metric]["value"] for run in runs) for when in ("before", "after")]
    return " → ".join(f"{mean:.0f}" if metric.startswith("mme/") else f"{100 * mean:.1f}" for mean in means)

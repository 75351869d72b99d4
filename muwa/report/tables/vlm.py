"""The table of a sweep over identities with a vision-language model, one row per identity, as in SLUG."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from muwa.drafts import write_text
from muwa.report.runs import Results, SweptRun, grouped
from muwa.report.text import md_cell, rounded
from muwa.types.metric import RATE

ANSWERED = ("forget/answered", "retain/answered", "utility/answered")
BENCHMARKS = (
    "mme/perception",
    "mme/cognition",
    "mmbench/accuracy",
    "gqa/accuracy",
    "scienceqa/accuracy",
    "pope/accuracy",
    "pope/f1",
)
PUBLISHED = (
    "Published for LLaVA-1.5 7B (SLUG, arXiv 2407.11867): mean forget accuracy of ten identities 99.50 -> "
    "2.8 %; another model and other data."
)


def applies(runs: Sequence[SweptRun]) -> bool:
    """Whether a run measured the answers to questions about the target."""
    return any(map(_belongs, runs))


def write(folder: Path, runs: Sequence[SweptRun]) -> None:
    """Write vlm.md: one row per identity, then their mean; swept methods follow one another."""
    mine = [run for run in runs if _belongs(run)]
    columns, variants = metrics_of([run.results for run in mine]), grouped(mine)
    several = len(variants) > 1
    head = [*(["method"] if several else []), "forgotten", *columns, "seconds"]
    rows = [head, ["---"] * len(head)]
    for variant, found in variants.items():
        lead = [variant.label] if several else []
        rows += [
            [*map(md_cell, [*lead, ", ".join(run["task"]["names"])]), *_cells([run], columns)]
            for run in found
        ]
        rows.append([*lead, f"**mean of {len(found)}**", *_cells(found, columns)])
    source = mine[0].results["provenance"]["model"]["source"]
    note = f"\nModel: {source}. Before → after, rates in per cent. Seconds: the method alone.\n{PUBLISHED}\n"
    write_text(folder / "vlm.md", "".join(f"| {' | '.join(row)} |\n" for row in rows) + note)


def _belongs(run: SweptRun) -> bool:
    return ANSWERED[0] in run.results["metrics"]["after"]


def metrics_of(runs: Sequence[Results]) -> list[str]:
    """The metrics that every run has: the rates of right answers, then the scores of benchmarks."""
    shared = [
        name for name in runs[0]["metrics"]["after"] if all(name in run["metrics"]["after"] for run in runs)
    ]
    return [*(name for name in ANSWERED if name in shared), *(name for name in shared if name in BENCHMARKS)]


def _cells(runs: Sequence[Results], columns: Sequence[str]) -> list[str]:
    """The means over `runs` of each column, and of the seconds."""
    return [
        *(_cell(runs, name) for name in columns),
        f"{statistics.mean(run['cost']['seconds'] for run in runs):.1f}",
    ]


def _cell(runs: Sequence[Results], name: str) -> str:
    """Means before and after: rates in per cent; other numbers, and those without a unit, as they are."""
    metrics = [[run["metrics"][when][name] for run in runs] for when in ("before", "after")]
    means = [statistics.mean(metric["value"] for metric in found) for found in metrics]
    rate = all(metric.get("unit") == RATE for metric in metrics[1])
    return " → ".join(rounded(100 * mean, ".1f") if rate else rounded(mean, ".4g") for mean in means)

"""The tables of a sweep over methods: one row per method (mean ± std over its requests), or per metric."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.special import stdtrit

from muwa.drafts import write_text
from muwa.report import figures
from muwa.report.runs import (
    REPEATED,
    Results,
    SweptRun,
    Variant,
    Variants,
    grouped,
    unedited,
    value_of,
    variant_of,
)
from muwa.report.text import csv_cell, md_cell, rounded

ACCURACIES = ("forget/top1", "forget/top5", "retain/top1", "retain/top5", "utility/top1")  # as SLUG's tables
FORGOTTEN = "forget/top5"  # at 0 a run counts as having forgotten
KEPT = ("retain/top1", "utility/top1")
COSTS: dict[str, tuple[str, float]] = {
    "seconds": ("seconds", 1),
    "memory GB": ("peak_memory_bytes", 1e-9),
    "samples": ("samples", 1),
    "parameters": ("parameters", 1),
    "stored MB": ("bytes", 1e-6),
}
COMPARED = ("method", "layer_search", "forget_target")  # groups of settings whose sweep gives evidence.*

Requests = dict[tuple[str, ...], dict[str, Results]]  # request -> seed -> results.json
Pair = tuple[Results, Results]


def applies(runs: Sequence[SweptRun]) -> bool:
    """Whether there is something to compare: two runs or more."""
    return len(runs) > 1


def write(folder: Path, runs: Sequence[SweptRun]) -> None:
    """Write table.* and paired.*, where all runs have accuracies, and evidence.*, which holds every metric.

    paired.* wants several variants; evidence.* a method, or a setting of one, that was swept.
    """
    variants = grouped(runs)
    if all(set(ACCURACIES) <= set(run.results["metrics"]["after"]) for run in runs):
        _write(folder / "table", *accuracies(variants))
        figures.try_save(partial(_figure, variants), folder / "table.png")
        if len(variants) > 1:
            _write(folder / "paired", *paired(runs))
    if any(key.split(".")[0] in COMPARED for run in runs for key in run.swept):
        _write(folder / "evidence", *evidence(variants))


def paired(runs: Sequence[SweptRun]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): how much more each variant keeps than the first, on requests that both forgot.

    A request is what was forgotten. Its value is the difference between what the two variants keep after the
    edit, averaged over the seeds with which both forgot: three seeds of one person are not three people. A
    cell is the mean over requests, in points, with its 95 % interval by Student's t.
    """
    forgot: dict[Variant, Requests] = {}
    for run in runs:
        names = run.results["task"]["names"]
        request = (*names, *(run.swept.get(key, "") for key in REPEATED if key != "seed"))
        if value_of(run.results, "after", FORGOTTEN) == 0:
            seeds = forgot.setdefault(variant_of(run), {}).setdefault(request, {})
            seeds[run.swept.get("seed", "")] = run.results
    first, *others = dict.fromkeys(map(variant_of, runs))
    rows = []
    for variant in others:
        requests = _shared(forgot.get(first, {}), forgot.get(variant, {}))
        cells = [_interval([_kept_more(pairs, name) for pairs in requests]) for name in KEPT]
        rows.append([variant.label, str(len(requests)), *cells])
    return [f"kept more than {first.label}, points", "requests", *KEPT], rows


def _shared(one: Requests, other: Requests) -> list[list[Pair]]:
    """For each request that both forgot with the same seed: the runs of both, one pair per seed."""
    every = [
        [
            (one[request][seed], other[request][seed])
            for seed in sorted(set(one[request]) & set(other[request]))
        ]
        for request in sorted(set(one) & set(other))
    ]
    return [pairs for pairs in every if pairs]


def _kept_more(pairs: Sequence[Pair], name: str) -> float:
    """By how many points the second run of a pair is higher after the edit; the mean over pairs."""
    return 100 * statistics.mean(
        value_of(mine, "after", name) - value_of(first, "after", name) for first, mine in pairs
    )


def _interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval by Student's t; "-" for fewer than two values.

    >>> _interval([1.0, 2.0, 3.0])
    '+2.00 (-0.48 to +4.48)'
    """
    if len(values) < 2:
        return "-"
    mean = statistics.mean(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / len(values) ** 0.5
    mean_text, low, high = (rounded(value, "+.2f") for value in (mean, mean - half, mean + half))
    return f"{mean_text} ({low} to {high})"


def accuracies(variants: Variants) -> tuple[list[str], list[list[str]]]:
    """(header, rows): accuracies in per cent and costs, mean ± sample std; the unedited model comes first."""
    every = [run for runs in variants.values() for run in runs]
    costs = [name for name, (key, _) in COSTS.items() if all(key in run["cost"] for run in every)]
    header = ["method", "runs", "forgotten", *ACCURACIES, *costs]
    rows = [
        [label, str(len(runs)), "", *_per_cent(runs, "before"), *[""] * len(costs)]
        for label, runs in unedited(variants).items()
    ]
    for variant, runs in variants.items():
        forgotten = sum(value_of(run, "after", FORGOTTEN) == 0 for run in runs)
        paid = [
            _spread([scale * run["cost"][key] for run in runs])
            for key, scale in (COSTS[name] for name in costs)
        ]
        rows.append(
            [variant.label, str(len(runs)), f"{forgotten}/{len(runs)}", *_per_cent(runs, "after"), *paid]
        )
    return header, rows


def _per_cent(runs: Sequence[Results], when: str) -> list[str]:
    return [_spread([100 * value_of(run, when, name) for run in runs]) for name in ACCURACIES]


def evidence(variants: Variants) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric that all runs have; its direction, and its mean ± std before and after."""
    every = [run for runs in variants.values() for run in runs]
    first, before = every[0]["metrics"]["after"], unedited(variants)
    shared = [name for name in first if all(name in run["metrics"]["after"] for run in every)]
    rows = []
    for name in shared:
        cells = [_cell([run["metrics"]["before"][name] for run in runs]) for runs in before.values()]
        cells += [_cell([run["metrics"]["after"][name] for run in runs]) for runs in variants.values()]
        rows.append([name, first[name]["better"], *cells])
    return ["metric", "better", *before, *(variant.label for variant in variants)], rows


def _cell(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Mean ± std; "> mean" where a value was cut off at its cap, so that the mean is a lower bound.

    Results of earlier versions do not say `capped`: they give mean ± std.
    """
    values = [metric["value"] for metric in metrics]
    if any(metric.get("capped", False) for metric in metrics):
        return f"> {_number(statistics.mean(values))}"
    return _spread(values)


def _spread(values: Sequence[float]) -> str:
    """Mean, and ± sample std where there are several values.

    >>> _spread([1.0, 3.0])
    '2.00 ± 1.41'
    >>> _spread([0.125])
    '0.125'
    """
    mean = statistics.mean(values)
    if len(values) < 2:
        return _number(mean)
    return f"{_number(mean)} ± {_number(statistics.stdev(values), like=mean)}"


def _number(value: float, like: float | None = None) -> str:
    """Three digits or more. Both numbers of a cell have the same decimals: those of `like`.

    >>> [_number(x) for x in (0.0, 0.125, 12.5, 125.0, 1250.0)]
    ['0', '0.125', '12.50', '125.0', '1,250']
    """
    size = abs(value if like is None else like)
    places = 0 if size == 0 or size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return rounded(value, f",.{places}f")


def _write(stem: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One table as CSV, Markdown and LaTeX (booktabs)."""
    text = io.StringIO()
    safe = [[csv_cell(row[0]), *row[1:]] for row in rows]  # the other cells are numbers, with or without ±
    csv.writer(text, lineterminator="\n").writerows([[*map(csv_cell, header)], *safe])
    write_text(stem.with_suffix(".csv"), text.getvalue())
    lines = [f"| {' | '.join(map(md_cell, row))} |" for row in (header, *rows)]
    write_text(stem.with_suffix(".md"), "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n")
    body = [" & ".join(map(_latex, row)) + r" \\" for row in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", body[0], r"\midrule", *body[1:]]
    write_text(stem.with_suffix(".tex"), "\n".join([*parts, r"\bottomrule", r"\end{tabular}"]) + "\n")


def _latex(text: str) -> str:
    """A text for LaTeX, its special characters escaped.

    >>> _latex("a_b $^$ {c}")
    'a\\\\_b \\\\$\\\\textasciicircum{}\\\\$ \\\\{c\\\\}'
    """
    special: dict[str, str | int | None] = {sign: rf"\{sign}" for sign in "_%&$#{}"}
    special |= {"±": r"$\pm$", "→": r"$\to$", ">": "$>$", "<": "$<$"}
    special |= {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    return text.translate(str.maketrans(special))


def _figure(variants: Variants) -> Figure:
    points = {}
    for variant, runs in variants.items():
        forgotten = [100 * value_of(run, "after", FORGOTTEN) for run in runs]
        changes = [
            sum(value_of(run, "after", name) - value_of(run, "before", name) for name in KEPT) for run in runs
        ]
        points[variant] = (forgotten, [100 / len(KEPT) * change for change in changes])
    return figures.kept_against_forgotten(points, FORGOTTEN)

"""The runs of a sweep over methods as tables: a row a method (mean ± std over what was forgotten), a row a metric."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from muwa import figures
from muwa.report import write_text

ACCURACIES = ("forget/top1", "forget/top5", "retain/top1", "retain/top5", "utility/top1")
COSTS: dict[str, tuple[str, float]] = {
    "seconds": ("seconds", 1), "memory GB": ("peak_memory_bytes", 1e-9), "samples": ("samples", 1),
    "parameters": ("parameters", 1), "stored MB": ("bytes", 1e-6),
}  # fmt: skip
_REPEATED = ("task.identity", "task.object", "task.concept", "seed")  # what rows are means over
_BEFORE = "before"

Run = tuple[Mapping[str, str], Mapping[str, Any]]  # (what was swept, results.json)


def write_methods_table(folder: Path, runs: Sequence[Run]) -> None:
    """Write table.csv, .md, .tex and .png, and evidence.csv, .md, .tex, where a method or a setting of one was swept."""
    if not any(key.split(".")[0] in ("method", "layer_search", "forget_target") for swept, _ in runs for key in swept):
        return
    variants = grouped(runs)
    if all(set(ACCURACIES) <= set(found["metrics"]["after"]) for _, found in runs):
        _write(folder / "table", *accuracies(variants))
        figures.save(_figure(variants), folder / "table.png")
    _write(folder / "evidence", *evidence(variants))


def grouped(runs: Sequence[Run]) -> dict[str, list[Mapping[str, Any]]]:
    """Label of a variant -> its runs: those that differ only in what was forgotten and in the seed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    seen = []
    for swept, run in runs:
        if swept in seen:  # again, for a setting that its method does not read
            continue
        seen.append(swept)
        own = {key: value for key, value in swept.items() if key not in _REPEATED}
        method = own.pop("method", run["provenance"]["method"])
        settings = ", ".join(f"{key.removeprefix('method.')}={value}" for key, value in own.items() if value)
        found.setdefault(f"{method} ({settings})" if settings else method, []).append(run)
    return found


def accuracies(variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): accuracies in per cent and costs, mean ± sample std; the first row is the unedited model."""
    every = [run for runs in variants.values() for run in runs]
    costs = [name for name, (key, _) in COSTS.items() if all(key in run["cost"] for run in every)]
    header = ["method", "runs", "forgotten", *ACCURACIES, *costs]
    rows = []
    for label, runs in {_BEFORE: every, **variants}.items():
        when = _BEFORE if label == _BEFORE else "after"
        cells = [_spread([100 * _value(run, when, name) for run in runs]) for name in ACCURACIES]
        gone = sum(_value(run, when, "forget/top5") == 0 for run in runs)
        paid = [_spread([scale * run["cost"][key] for run in runs]) for key, scale in (COSTS[name] for name in costs)]
        if label == _BEFORE:
            rows.append([label, str(len(runs)), "", *cells, *[""] * len(paid)])
        else:
            rows.append([label, str(len(runs)), f"{gone}/{len(runs)}", *cells, *paid])
    return header, rows


def evidence(variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric that all runs have, its direction, and its mean ± std before and after each variant."""
    every = [run for runs in variants.values() for run in runs]
    first = every[0]["metrics"]["after"]
    shared = [name for name in first if all(name in run["metrics"]["after"] for run in every)]
    rows = []
    for name in shared:
        cells = [_spread([_value(run, _BEFORE, name) for run in every])]
        cells += [_spread([_value(run, "after", name) for run in runs]) for runs in variants.values()]
        rows.append([name, first[name]["better"], *cells])
    return ["metric", "better", _BEFORE, *variants], rows


def _value(run: Mapping[str, Any], when: str, metric: str) -> float:
    return run["metrics"][when][metric]["value"]


def _spread(values: Sequence[float]) -> str:
    """Mean, and ± sample std where there are several.

    >>> _spread([1.0, 3.0]), _spread([0.125])
    ('2.00 ± 1.41', '0.125')
    """
    mean = statistics.mean(values)
    if len(values) < 2:
        return _number(mean)
    return f"{_number(mean)} ± {_number(statistics.stdev(values), like=mean)}"


def _number(value: float, like: float | None = None) -> str:
    size = abs(value if like is None else like)
    return (
        f"{value:,.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 100
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def _write(stem: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(stem.with_suffix(".csv"), text.getvalue())
    lines = [f"| {' | '.join(row)} |" for row in (header, *rows)]
    write_text(stem.with_suffix(".md"), "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n")
    body = [" & ".join(map(_latex, row)) + r" \\" for row in (header, *rows)]
    parts = [r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}", r"\toprule", body[0], r"\midrule", *body[1:],
             r"\bottomrule", r"\end{tabular}"]  # fmt: skip
    write_text(stem.with_suffix(".tex"), "\n".join(parts) + "\n")


def _latex(text: str) -> str:
    for plain, safe in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("±", r"$\pm$"), ("→", r"$\to$")):
        text = text.replace(plain, safe)
    return text


def _figure(variants: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Forgetting against keeping: a point a variant, the mean over its runs, with the standard deviation as bars."""
    figure, axes = figures.blank(7.6, 4.6)
    axis = axes[0, 0]
    for i, (label, runs) in enumerate(variants.items()):
        gone = [100 * _value(run, "after", "forget/top5") for run in runs]
        lost = [50 * sum(_value(run, "after", name) - _value(run, _BEFORE, name) for name in ("retain/top1", "utility/top1"))
                for run in runs]  # fmt: skip
        bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in (gone, lost)]
        axis.errorbar(statistics.mean(gone), statistics.mean(lost), xerr=bars[0], yerr=bars[1], fmt="os^Dvp*hX"[i % 9],
                      color=f"C{i % 10}", markersize=7, linewidth=1, capsize=2, label=label)  # fmt: skip
    axis.axhline(0, color="#999999", linewidth=0.8)
    axis.set_xlabel("forget/top5 after, %   (left: forgotten)", fontsize=9)
    axis.set_ylabel("change of retain and utility top-1, points", fontsize=9)
    axis.legend(fontsize=7, loc="best")
    return figure

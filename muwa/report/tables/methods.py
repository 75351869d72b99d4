"""The runs of a sweep over methods as tables: a row a method (mean ± std over what was forgotten), a row a metric."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.stats import t

from muwa.report import figures
from muwa.report.page import write_text

ACCURACIES = ("forget/top1", "forget/top5", "retain/top1", "retain/top5", "utility/top1")
COSTS: dict[str, tuple[str, float]] = {
    "seconds": ("seconds", 1), "memory GB": ("peak_memory_bytes", 1e-9), "samples": ("samples", 1),
    "parameters": ("parameters", 1), "stored MB": ("bytes", 1e-6),
}  # fmt: skip
REPEATED = ("task.identity", "task.object", "task.concept", "seed")  # what rows are means over
_KEPT = ("retain/top1", "utility/top1")

Run = tuple[Mapping[str, str], Mapping[str, Any]]  # (what was swept, results.json)
Variants = Mapping[str, Sequence[Mapping[str, Any]]]  # label -> results.json of its runs
Forgotten = dict[tuple[str, ...], dict[str, Mapping[str, Any]]]  # request -> seed -> results.json


def write_methods_table(folder: Path, runs: Sequence[Run]) -> None:
    """Write table.csv, .md, .tex and .png of several runs with accuracies, and paired.* of several variants.

    And evidence.*, every metric, where a method or a setting of one was swept.
    """
    if len(runs) < 2:
        return
    variants = grouped(runs)
    if all(set(ACCURACIES) <= set(found["metrics"]["after"]) for _, found in runs):
        _write(folder / "table", *accuracies(variants))
        figures.save(_figure(variants), folder / "table.png")
        if len(variants) > 1:
            _write(folder / "paired", *paired(runs))
    if any(key.split(".")[0] in ("method", "layer_search", "forget_target") for swept, _ in runs for key in swept):
        _write(folder / "evidence", *evidence(variants))


def label_of(swept: Mapping[str, str], run: Mapping[str, Any]) -> str:
    """A run's method with the settings that were swept, but for what was forgotten and the seed."""
    own = {key: value for key, value in swept.items() if key not in REPEATED}
    method = own.pop("method", run["provenance"]["method"])
    settings = ", ".join(f"{key.removeprefix('method.')}={value}" for key, value in own.items() if value)
    return f"{method} ({settings})" if settings else method


def grouped(runs: Sequence[Run]) -> dict[str, list[Mapping[str, Any]]]:
    """Label of a variant -> its runs: those that differ only in what was forgotten and in the seed."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    seen = []
    for swept, run in runs:
        if swept in seen:  # again, for a setting that its method does not read
            continue
        seen.append(swept)
        found.setdefault(label_of(swept, run), []).append(run)
    return found


def paired(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): what each variant keeps more than the first, in points, over the requests that both forgot.

    A request is what was forgotten. Of each, the difference of what both keep after the edit, the mean over the seeds with
    which both end with forget/top5 = 0: three seeds of one person are not three people. Of the requests, the mean with its
    95 % interval by Student's t.
    """
    gone: dict[str, Forgotten] = {}
    for swept, run in runs:
        request = (*run["task"]["names"], *(swept.get(key, "") for key in REPEATED if key != "seed"))
        if _value(run, "after", "forget/top5") == 0:
            gone.setdefault(label_of(swept, run), {}).setdefault(request, {})[swept.get("seed", "")] = run
    first, *others = dict.fromkeys(label_of(swept, run) for swept, run in runs)
    rows = []
    for label in others:
        both = _shared(gone.get(first, {}), gone.get(label, {}))
        cells = [_interval([_kept_more(pairs, name) for pairs in both]) for name in _KEPT]
        rows.append([label, str(len(both)), *cells])
    return [f"kept more than {first}, points", "requests", *_KEPT], rows


def _shared(one: Forgotten, other: Forgotten) -> list[list[tuple[Mapping[str, Any], Mapping[str, Any]]]]:
    """Of each request that both forgot by the same seed, the runs of both, a pair a seed."""
    every = [
        [(one[request][seed], other[request][seed]) for seed in sorted(set(one[request]) & set(other[request]))]
        for request in sorted(set(one) & set(other))
    ]
    return [pairs for pairs in every if pairs]


def _kept_more(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], name: str) -> float:
    """By how many points the second of a pair is higher after the edit, the mean over pairs."""
    return 100 * statistics.mean(_value(mine, "after", name) - _value(first, "after", name) for first, mine in pairs)


def _interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval by Student's t; "-" for fewer than two values.

    >>> _interval([1.0, 2.0, 3.0])
    '+2.00 (-0.48 to +4.48)'
    """
    if len(values) < 2:
        return "-"
    mean = statistics.mean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


def accuracies(variants: Variants) -> tuple[list[str], list[list[str]]]:
    """(header, rows): accuracies in per cent and costs, mean ± sample std; first the unedited model (`unedited`)."""
    every = [run for runs in variants.values() for run in runs]
    costs = [name for name, (key, _) in COSTS.items() if all(key in run["cost"] for run in every)]
    header = ["method", "runs", "forgotten", *ACCURACIES, *costs]
    rows = [
        [label, str(len(runs)), "", *_per_cent(runs, "before"), *[""] * len(costs)]
        for label, runs in unedited(variants).items()
    ]
    for label, runs in variants.items():
        gone = sum(_value(run, "after", "forget/top5") == 0 for run in runs)
        paid = [_spread([scale * run["cost"][key] for run in runs]) for key, scale in (COSTS[name] for name in costs)]
        rows.append([label, str(len(runs)), f"{gone}/{len(runs)}", *_per_cent(runs, "after"), *paid])
    return header, rows


def unedited(variants: Variants) -> Variants:
    """ "before" -> a run of each request, for its metrics before the edit, which all variants of the request share.

    Requests are alike where model and data have the same fingerprints. Of several models each has its own row: "before
    (source, start of the weights' digest)".
    """
    found: dict[tuple[str, str], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for run in (run for runs in variants.values() for run in runs):
        model, data = run["provenance"]["model"], run["provenance"]["data"]
        own = found.setdefault((model["source"], model.get("weights", "")), {})  # only a CLIP says its weights
        own.setdefault((model["fingerprint"], data["fingerprint"]), run)
    labels = [f"before ({', '.join(filter(None, (source, weights[:8])))})" for source, weights in found]
    if len(found) == 1:
        labels = ["before"]
    return {label: list(own.values()) for label, own in zip(labels, found.values(), strict=True)}


def _per_cent(runs: Sequence[Mapping[str, Any]], when: str) -> list[str]:
    return [_spread([100 * _value(run, when, name) for run in runs]) for name in ACCURACIES]


def evidence(variants: Variants) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric that all runs have, its direction, and its mean ± std before and after each variant."""
    every = [run for runs in variants.values() for run in runs]
    first, before = every[0]["metrics"]["after"], unedited(variants)
    shared = [name for name in first if all(name in run["metrics"]["after"] for run in every)]
    rows = []
    for name in shared:
        cells = [_cell([run["metrics"]["before"][name] for run in runs]) for runs in before.values()]
        cells += [_cell([run["metrics"]["after"][name] for run in runs]) for runs in variants.values()]
        rows.append([name, first[name]["better"], *cells])
    return ["metric", "better", *before, *variants], rows


def _cell(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Mean ± std; "> mean" where one was cut off at its cap (steps of relearning): a lower bound, of no known spread."""
    values = [metric["value"] for metric in metrics]
    if any(f"; {metric['value']:.0f}: not within so many" in metric["reads"] for metric in metrics):
        return f"> {_number(statistics.mean(values))}"
    return _spread(values)


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
    """Three digits or more, of both numbers of a cell the same decimals (those of `like`).

    >>> [_number(x) for x in (0.0, 0.125, 12.5, 125.0, 1250.0)]
    ['0', '0.125', '12.50', '125.0', '1,250']
    """
    size = abs(value if like is None else like)
    places = 0 if size == 0 or size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{value:,.{places}f}"


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
    for plain, safe in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("±", r"$\pm$"), ("→", r"$\to$"), (">", "$>$")):
        text = text.replace(plain, safe)
    return text


def _figure(variants: Variants) -> Figure:
    points = {}
    for label, runs in variants.items():
        lost = [50 * sum(_value(run, "after", name) - _value(run, "before", name) for name in _KEPT)
                for run in runs]  # fmt: skip
        points[label] = ([100 * _value(run, "after", "forget/top5") for run in runs], lost)
    return figures.kept_against_forgotten(points)

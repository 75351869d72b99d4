"""What a W&B run shows, as plain values: names, tags, tables and summary. It needs no wandb."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.fingerprint import file_digest
from muwa.report.machine_paths import without_folders
from muwa.report.verdicts import verdict, verdicts
from muwa.types.edit import Move
from muwa.types.report import Report
from muwa.types.verdict import word

# The figures that are sent: those of numbers. `examples` holds images and is not sent.
PLOTS = ("gains", "pareto", "trace", "metrics", "similarity")
GRADIENTS = ("concept", "encoder", "layer", "forget norm", "retain norm")
SCORES = ("concept", "layer", "tower", "importance", "alignment", "cosine", "gain", "on front")
SEARCH = (
    "concept",
    "evaluation",
    "tower",
    "layer",
    "iteration",
    "step",
    "unit",
    "relative norm",
    "forgotten",
    "kept",
    "feasible",
)
METRICS = ("metric", "when", "value", "low", "high", "n", "better")
ANSWERS = ("set", "question", "right answer", "before", "after")
_LONGEST_NAME, _LONGEST_TAG = 128, 64  # limits of W&B, in letters


def run_name(method: str, names: Sequence[str], moves: Sequence[Move] = ()) -> str:
    """The name of a run: its method, whom it forgets, and the edited layers once they are known.

    >>> move = Move("Kael Lindqvar", "text", "transformer.resblocks.0.attn.out_proj.weight", 4.0, 0.6)
    >>> run_name("slug", ["Kael Lindqvar"]), run_name("slug", ["Kael Lindqvar"], [move])
    ('slug · Kael Lindqvar', 'slug · Kael Lindqvar · text 0.attn.out_proj')
    """
    layers = dict.fromkeys(short_layer(move) for move in moves)
    parts = [method, _few(names), _few([*layers])]
    return " · ".join(part for part in parts if part)[:_LONGEST_NAME]


def short_layer(move: Move) -> str:
    """Tower and layer without what all layers of a transformer share.

    >>> short_layer(Move("A", "vision", "visual.proj", 1.0, 0.1))
    'vision visual.proj'
    """
    words = move.layer.removesuffix(".weight").split(".")
    blocks = [place for place, word in enumerate(words) if word.isdigit()]
    if blocks and move.tower in ("text", "vision") and " " not in move.layer:
        words = words[blocks[0] :]
    return f"{move.tower} {'.'.join(words)}"


def _few(names: Sequence[str]) -> str:
    """Up to three names; of more, the first and how many others."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def tag(text: str) -> str:
    """A tag as W&B takes it: 1 to 64 letters."""
    return text[:_LONGEST_TAG] or "none"


def job_type(stages: Sequence[str]) -> str:
    """What kind of run it is: the first of its stages that computes.

    >>> job_type(["unlearn", "eval", "report"]), job_type(["eval"])
    ('unlearn', 'eval')
    """
    return next((stage for stage in stages if stage != "curate"), "curate")


def gradient_rows(row: Mapping[str, Any]) -> list[list[Any]]:
    """The rows of table `gradients` for one event "gradients"."""
    encoder = row.get("encoder", "")
    return [[row["concept"], encoder, name, n["forget"], n["retain"]] for name, n in row["norms"].items()]


def score_rows(row: Mapping[str, Any]) -> list[list[Any]]:
    """The rows of table `scores` for one event "scores"."""
    front = set(row["front"])
    return [
        [row["concept"], name, s.tower, s.importance, s.alignment, s.cosine, s.gain, name in front]
        for name, s in row["scores"].items()
    ]


def search_point(row: Mapping[str, Any], evaluation: int) -> dict[str, float]:
    """The curves of one event "evaluation": its measures, by the number of the evaluation.

    W&B draws no texts and no truth values; table `search` has them, and the iteration within a layer.
    """
    curves = {
        f"search/{key}": value
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "iteration"
    }
    return {**curves, "search/evaluation": evaluation}


def search_row(row: Mapping[str, Any], evaluation: int) -> list[Any]:
    """The row of table `search` for one event "evaluation"."""
    keys = (
        "tower",
        "layer",
        "iteration",
        "step",
        "step_unit",
        "relative_norm",
        "forgotten",
        "kept",
        "feasible",
    )
    return [row.get("concept", ""), evaluation, *(row.get(key) for key in keys)]


def changes(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much each metric changed that was measured before and after.

    >>> changes({"forget/top1": 1.0}, {"forget/top1": 0.25, "forget/mia": 0.5})
    {'change/forget/top1': -0.75}
    """
    return {f"change/{name}": after[name] - before[name] for name in sorted(before.keys() & after.keys())}


def notes(report: Report) -> str:
    """The notes of a run in W&B, which reads Markdown: the verdict, then what was found of each part."""
    headline, *findings = (one["text"] for one in verdicts(report))
    return "\n".join([headline, "", *(f"- {text}" for text in findings)]).strip()


def metric_rows(report: Report) -> list[list[Any]]:
    """The rows of table `metrics`: each metric before and after, with its interval."""
    return [
        [name, when, metric.value, metric.low, metric.high, metric.n, metric.reading.better]
        for name in report.after
        for when, metrics in (("before", report.before), ("after", report.after))
        if (metric := metrics.get(name)) is not None
    ]


def summary(report: Report) -> dict[str, Any]:
    """What W&B's table of runs shows.

    Objective, verdict, commit, edit, cost, and each metric before and after with `_n`, `_better`, `_low` and
    `_high`, and its change.
    """
    found: dict[str, Any] = {
        "objective": report.objective,
        "verdict": word(verdict(report).kind),
        "git_commit": report.provenance.get("git_commit"),
        "names": ", ".join(report.task.names),
        "evaluations": sum(len(search.trace) for search in report.edit.searches),
    }
    moves = report.edit.moves
    if moves:
        found |= {
            "edit/layer": ", ".join(dict.fromkeys(move.layer for move in moves)),
            "edit/tower": ", ".join(dict.fromkeys(move.tower for move in moves)),
            "edit/relative_norm": max(move.relative_norm for move in moves),
        }
    for when, metrics in (("before", report.before), ("after", report.after)):
        for name, metric in metrics.items():
            key = f"{when}/{name}"
            found |= {key: metric.value, f"{key}_n": metric.n, f"{key}_better": metric.reading.better}
            if metric.low is not None and metric.high is not None:
                found |= {f"{key}_low": metric.low, f"{key}_high": metric.high}
    values = [{name: one.value for name, one in side.items()} for side in (report.before, report.after)]
    found |= changes(*values)
    return found | {f"cost/{name}": value for name, value in report.cost.items()}


def patch_description(report: Report | None) -> str:
    """The text beside the patch in W&B: what it forgets, where, and how it is applied."""
    use = "Apply: python -m muwa.patch apply PATCH BASE --out DIR. It fits one base model only."
    if report is None:
        return f"A patch of muwa. {use}"
    layers = ", ".join(dict.fromkeys(short_layer(move) for move in report.edit.moves)) or "nothing"
    return f"Makes a model forget {', '.join(report.task.names)} by an edit of {layers}. {use}"


def patch_metadata(patch: Path, report: Report | None) -> dict[str, Any]:
    """What W&B keeps beside the patch: digest and size, and, of a finished run, its edit and metrics."""
    found: dict[str, Any] = {"sha256": file_digest(patch), "bytes": patch.stat().st_size}
    if report is None:
        return found
    about = {key: report.provenance.get(key) for key in ("method", "model", "versions", "git_commit", "data")}
    moves = [
        {"concept": m.concept, "tower": m.tower, "layer": m.layer, "relative_norm": m.relative_norm}
        for m in report.edit.moves
    ]
    measured = {
        when: {name: metric.value for name, metric in metrics.items()}
        for when, metrics in (("before", report.before), ("after", report.after))
    }
    names = {"names": list(report.task.names), "objective": report.objective}
    told: dict[str, Any] = without_folders({**found, **about, **names, "moves": moves, **measured})
    return told


def how_to_send(folder: Path, runs: str = "") -> str | None:
    """The line that says how to send W&B what was logged offline; None if nothing was.

    Args:
        folder: The folder of a run, or of a sweep.
        runs: Where the runs lie in `folder`: "" if it is one itself, "*/" in a sweep.
    """
    pattern = f"{runs}wandb/offline-run-*"
    found = sorted(folder.glob(pattern))
    if not found:
        return None
    places = shlex.quote(str(found[0])) if len(found) == 1 else f"{shlex.quote(str(folder))}/{pattern}"
    return f"W&B was logged offline; to send it: wandb sync {places}"


def plots(folder: Path) -> list[Path]:
    """The files of the report's plots: <kind>.png, or <kind>_1.png, ... where there are several."""
    return [
        path
        for kind in PLOTS
        for pattern in ("", "_*")
        for path in sorted(folder.glob(f"{kind}{pattern}.png"))
    ]

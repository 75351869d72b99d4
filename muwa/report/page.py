"""A finished run as files: results.json (documented in docs/results_schema.md), figures and one self-contained page."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from muwa.data.shards import image_ending
from muwa.fingerprint import read_image
from muwa.report import figures, samples
from muwa.types.data import Task
from muwa.types.metric import Metric
from muwa.types.report import Report

SCHEMA = 1
TEMPLATES = Path(__file__).parent / "templates"


def results(report: Report) -> dict[str, Any]:
    """Everything that results.json says; plain values only."""
    move = report.edit.moves[0] if report.edit.moves else None
    searches = report.edit.searches
    return {
        "schema": SCHEMA,
        "name": report.name,
        "objective": report.objective,
        "metrics": {
            when: {name: asdict(metric) for name, metric in metrics.items()}
            for when, metrics in (("before", report.before), ("after", report.after))
        },
        "edit": {
            "tower": move.tower if move else None,
            "layer": move.layer if move else None,
            "step": move.step if move else None,
            "relative_norm": move.relative_norm if move else None,
            "moves": [asdict(one) for one in report.edit.moves],
        },
        "front": [
            {"concept": s.concept, "layer": name, "tower": s.scores[name].tower, "importance": s.scores[name].importance,
             "alignment": s.scores[name].alignment} for s in searches for name in s.front
        ],
        "scores": [
            {"concept": s.concept, "layer": name, **asdict(score)} for s in searches for name, score in s.scores.items()
        ],
        "trace": [{"concept": s.concept, **asdict(row)} for s in searches for row in s.trace],
        "search": [
            {"concept": s.concept, "rule": s.rule, "granularity": s.granularity, "chosen": s.chosen, "why": s.why,
             "feasible": any(row.feasible for row in s.trace), "before": asdict(s.before)} for s in searches
        ],
        "similarity": dict(report.similarity),
        "said": [
            {"question": one.question.text, "role": one.question.role, "expected": one.question.accepted[0],
             "before": one.before, "after": one.after} for one in report.said
        ],
        "task": sizes(report.task),
        "broken": [asdict(one) for one in report.task.broken],
        "seconds": dict(report.seconds),
        "cache": dict(report.cache),
        "peak_memory_bytes": report.peak_memory_bytes,
        "cost": dict(report.cost),
        "provenance": dict(report.provenance),
    }  # fmt: skip


def sizes(task: Task) -> dict[str, Any]:
    """What was forgotten and how many samples each set holds."""
    pictures = {
        when: {kind: len(getattr(split, kind)) for kind in ("forget", "retain", "utility")}
        for when, split in (("probe", task.probe), ("eval", task.eval))
    }
    return {
        "kind": task.kind, "names": list(task.names), "forget_pairs": {name: len(p) for name, p in task.forget.items()},
        "retain_pairs": len(task.retain) - len(task.mentions), "retain_pairs_left_out": len(task.mentions),
        "classes": len(task.eval.forget.classes.names), "pictures": pictures,
    }  # fmt: skip


def write_report(report: Report, *, show_forget: bool) -> None:
    """Write results.json, figures/*.png and report.html to the run's folder, each whole or not at all.

    Args:
        show_forget: True puts pictures of the forgotten into the page; by default none leaves the data set.
    """
    found = results(report)
    drawn = _figures(report)
    if report.drawn:
        drawn["drawings"] = samples.sheet(report.drawn, show_forget=show_forget)
    for name, figure in drawn.items():
        figures.save(figure, report.folder / "figures" / f"{name}.png")
    write_text(report.folder / "results.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    pictures = [_embed(read_image(image)) for image in report.task.eval.forget.images[:16]] if show_forget else []
    patch = report.folder / "patch.safetensors"
    page = environment().get_template("report.html").render(
        found=found, verdicts=verdicts(report), groups=grouped(metric_rows(report.before, report.after)), pictures=pictures,
        figures={path.stem: _embed(path.read_bytes()) for path in sorted((report.folder / "figures").glob("*.png"))},
        said=found["said"], patch_bytes=patch.stat().st_size if patch.is_file() else None, short=figures.short,
        show_forget=show_forget,
    )  # fmt: skip
    write_text(report.folder / "report.html", page)


def environment() -> jinja2.Environment:
    """The templates' environment, with escaping on."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def _figures(report: Report) -> dict[str, Any]:
    """Figure name -> figure; a number is added where several names were forgotten."""
    drawn: dict[str, Any] = {}
    for i, search in enumerate(report.edit.searches):
        tail = f"_{i + 1}" if len(report.edit.searches) > 1 else ""
        if search.scores:
            drawn[f"pareto{tail}"] = figures.pareto(search)
        if search.trace:
            drawn[f"trace{tail}"] = figures.trace(search)
    if any(map(figures.is_rate, report.before)):
        drawn["metrics"] = figures.bars(report.before, report.after)
    if report.similarity:
        s: Any = report.similarity
        drawn["similarity"] = figures.similarity(s["names"], s["before"], s["after"], report.task.names)
    return drawn


def _embed(image: bytes) -> str:
    kind = image_ending(image).replace("jpg", "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def verdicts(report: Report) -> list[dict[str, str]]:
    """The outcome in words: [{"kind": "good" | "bad" | "note", "text": ...}], the first one the headline."""
    names = ", ".join(report.task.names)
    said = []
    for search in report.edit.searches:
        if search.chosen is None:
            text = f"No step was found for {search.concept}, the model is unchanged for it. {search.why}"
            said.append({"kind": "bad", "text": text})
        elif not search.trace[search.chosen].feasible:
            text = f"The step taken for {search.concept} was not feasible on the probe pictures. {search.why}"
            said.append({"kind": "bad", "text": text})
    before, after = report.before, report.after
    if never := _never_known(before):
        said.append(
            {"kind": "bad", "text": f"The unedited model hardly knows {names} ({never}): what follows shows little."}
        )
    for key, words in (
        ("forget/top1", "the model's first guess"),
        ("forget/top5", "among the model's first five guesses"),
    ):
        if key in after and report.edit.moves:
            gone = after[key].value == 0
            share = f"{_percent(before[key])} → {_percent(after[key])} on {after[key].n} held-out pictures"
            verb = "is no longer" if gone else "is still sometimes"
            said.append({"kind": "good" if gone else "bad", "text": f"{names} {verb} {words}: {share}."})
    if "forget/ua" in after and report.edit.moves:
        still = Metric(1 - after["forget/ua"].value, after["forget/ua"].n), Metric(1 - before["forget/ua"].value, 0)
        gone = still[0].value <= 0.05 + 1e-9  # one of 20 is 5 %, but for rounding
        said.append({
            "kind": "good" if gone else "bad", "text": f"{names} is {'no longer' if gone else 'still sometimes'} what it "
            f"draws when asked: recognised in {_percent(still[1])} → {_percent(still[0])} of {still[0].n} drawings.",
        })  # fmt: skip
    if "forget/answered" in after and report.edit.moves:
        gone = after["forget/answered"].value <= 0.05 + 1e-9
        said.append({
            "kind": "good" if gone else "bad", "text": f"{names} is {'no longer' if gone else 'still sometimes'} named when "
            f"asked for: {_percent(before['forget/answered'])} → {_percent(after['forget/answered'])} of "
            f"the answers about {after['forget/answered'].n} pictures; {_percent(after['forget/wrong_name'])} name another, "
            f"{_percent(after['forget/refused'])} say that they do not know.",
        })  # fmt: skip
    for key, words in (
        ("retain/top1", "The other names"), ("utility/top1", "Everything else"),
        ("retain/answered", "Others of its kind, asked for"), ("utility/answered", "Everything else, asked for"),
        ("retain/ira", "Others of its kind, drawn and recognised"), ("retain/cra", "Everything else, drawn and recognised"),
    ):  # fmt: skip
        if key in after:
            change = 100 * (after[key].value - before[key].value)
            text = (
                f"{words}: {_percent(before[key])} → {_percent(after[key])} ({change:+.1f} points, n = {after[key].n})."
            )
            said.append({"kind": "note", "text": text})
    for key, metric in after.items():
        if key.startswith("attack/"):
            how = key.removeprefix("attack/").replace("_", " ")
            rates = f"{_percent(before[key])} → {_percent(metric)}"
            seen = "named" if "attack/leading" in after else "recognised"
            what = "the answers about {} pictures" if "attack/leading" in after else "{} drawings"
            text = f"Asked otherwise ({how}): {seen} in {rates} of {what.format(metric.n)}."
            bad = "bad" if metric.value > 0.05 else "good"
            said.append({"kind": "note" if metric.better == "neither" else bad, "text": text})
    return said or [{"kind": "note", "text": "Nothing was measured."}]


def _never_known(before: Mapping[str, Metric]) -> str:
    """Where the unedited model recognises, draws or names the forgotten in a fifth of the cases or fewer: how often."""
    for key, what in (("forget/top1", "recognised"), ("forget/ua", "drawn"), ("forget/answered", "named")):
        if key in before:
            rate = 1 - before[key].value if key == "forget/ua" else before[key].value
            return f"{what} in {rate:.0%} of {before[key].n}" if rate <= 0.2 else ""
    return ""


def _percent(metric: Metric) -> str:
    return f"{100 * metric.value:.1f} %"


def metric_rows(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row a metric for the page's table; accuracies in per cent, changes in points."""
    rows = []
    for name, metric in after.items():
        rate = figures.is_rate(name)
        scale, unit = (100, " %") if rate else (1, "")
        change = scale * (metric.value - before[name].value)
        kinds = {"higher": ("good", "worse"), "lower": ("worse", "good")}.get(metric.better, ("flat", "flat"))
        interval = ""
        if metric.low is not None and metric.high is not None:
            interval = f"{_number(scale * metric.low, rate)} – {_number(scale * metric.high, rate)}"
        rows.append({
            "name": name, "before": f"{_number(scale * before[name].value, rate)}{unit}",
            "after": f"{_number(scale * metric.value, rate)}{unit}", "change": _number(change, rate, "+"),
            "interval": interval, "n": metric.n, "better": metric.better, "reads": metric.reads,
            "kind": "flat" if change == 0 else kinds[change < 0],
        })  # fmt: skip
    return rows


def _number(value: float, rate: bool, sign: str = "") -> str:
    """A rate in per cent with one decimal; anything else with three, or three digits where those would be lost.

    >>> [_number(x, False) for x in (0.0, 0.000123, -0.00456, 0.0256, 12.3456)]
    ['0', '0.000123', '-0.00456', '0.026', '12.346']
    >>> _number(0.001, True), _number(0.00123, False, "+")
    ('0.0', '+0.00123')
    """
    if rate:
        return f"{value:{sign}.1f}"
    if value == 0:
        return "0"
    return f"{value:{sign}.3g}" if abs(value) < 0.01 else f"{value:{sign}.3f}"


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """(title, rows) of each kind of evidence, in the order of `rows`; first, without a title, what every report has."""
    groups: dict[str, list[Mapping[str, Any]]] = {"": []}
    for row in rows:
        prefix = row["name"].partition("/")[0]
        groups.setdefault("" if prefix in ("forget", "retain", "utility") else prefix, []).append(row)
    return [(_TITLES.get(prefix, prefix), some) for prefix, some in groups.items() if some]


_TITLES = {
    "attack": "Asked otherwise", "quality": "Quality of drawings", "quantised": "With rounded weights",
    "reworded": "In other words", "altered": "In altered pictures", "neighbours": "Look-alikes",
    "mia": "Membership inference: were the forget pairs trained on?", "probe": "A linear probe of the image features",
    "calibration": "Calibration", "retrieval": "Retrieval of pictures and names", "relearn": "Relearning",
    "gap": "Against models retrained without the forgotten",
}  # fmt: skip

"""The files of a finished run: results.json, figures/*.png and report.html, which needs no other file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from muwa.data.shards import image_ending
from muwa.drafts import write_text
from muwa.eval.statistics import change_of
from muwa.fingerprint import read_image
from muwa.patch.card import RUN, base_metadata, card_text, run_entry
from muwa.report import alt, figures, samples
from muwa.report.drawn import Drawn, draw
from muwa.report.machine_paths import shown_folder
from muwa.report.record import results
from muwa.report.text import environment, rounded
from muwa.report.verdicts import verdict
from muwa.types.edit import Edit
from muwa.types.metric import RATE, Change, Metric
from muwa.types.report import CARD, PATCH, Report
from muwa.types.search import LAMBDA, RELATIVE, Search
from muwa.types.verdict import word

Makes = Callable[[], figures.Figure]  # makes a figure

SAMPLES = 300  # samples whose scores the page lists
FORGET_IMAGES = 16  # held-out images of the forget set on a page that shows them
STEPS = {LAMBDA: "step λ", RELATIVE: "step, in ‖θ‖ / ‖g_f‖"}  # headings; any other unit is its own heading
DECIMALS = {RATE: 1, "cosine": 3, "auc": 3, "steps": 0}  # unit -> decimals of its numbers


def write_report(report: Report, *, show_forget: bool) -> None:
    """Write results.json, figures/*.png and report.html to the run's folder.

    Each file appears when it is complete, or not at all. results.json is written first, and a figure that
    cannot be drawn is left out with a warning: it does not cost the others or the page.

    Args:
        show_forget: Whether the page shows images of the forget set. False shows none.
    """
    record = results(report)
    write_text(report.folder / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    base = base_metadata(record["provenance"].get("model", {}).get("source", ""))
    card = card_text([run_entry(record, list(report.edit.deltas))], RUN, base=base, files={})
    write_text(report.folder / CARD, card)
    judged = verdict(report)
    forget_images = report.task.eval.forget.images[:FORGET_IMAGES] if show_forget else ()
    patch = report.folder / PATCH
    page = (
        environment()
        .get_template("report.html")
        .render(
            record=record,
            folder=shown_folder(report.folder),
            measured_on=measured_on(report.after),
            verdict=judged,
            word=word,
            roles={name: metric.reading.role for name, metric in report.after.items()},
            points=_points,
            groups=grouped(metric_rows(report.before, report.after, judged.kinds)),
            images=_images(report),
            samples=_samples(report, show_forget=show_forget),
            card=Markup(_html_of(card)),
            forget_images=[_embed(read_image(image)) for image in forget_images],
            searches=[steps_table(search) for search in report.edit.searches if search.trace],
            step_heading=step_heading(report.edit),
            size_heading=figures.SIZE,
            patch_bytes=patch.stat().st_size if patch.is_file() else None,
            show_forget=show_forget,
            sample_limit=SAMPLES,
        )
    )
    write_text(report.folder / "report.html", page)


def _images(report: Report) -> dict[str, list[Drawn]]:
    """Kind of figure -> its figures for the page.

    Each figure is saved as <kind>.png. Several of a kind have titles, and numbers in their file names.
    """
    drawn: dict[str, list[Drawn]] = {}
    for kind, makers in _figures(report).items():
        several = len(makers) > 1
        for i, (title, seen, make) in enumerate(makers):
            name = f"{kind}_{i + 1}" if several else kind
            found = draw(make, report.folder / "figures" / f"{name}.png", seen, whole=False)
            if found is not None:
                drawn.setdefault(kind, []).append(replace(found, title=title if several else ""))
    return drawn


def _figures(report: Report) -> dict[str, list[tuple[str, str, Makes]]]:
    """Kind of figure -> (title, what is seen, what makes it) of each: one per search, or one in all."""
    made: dict[str, list[tuple[str, str, Makes]]] = {}
    for search in report.edit.searches:
        title = search.concept
        if any(score.gain for score in search.scores.values()):
            made.setdefault("gains", []).append((title, alt.gains(search), partial(figures.gains, search)))
        elif any(score.alignment is not None for score in search.scores.values()):
            made.setdefault("pareto", []).append((title, alt.pareto(search), partial(figures.pareto, search)))
        if search.trace:
            made.setdefault("trace", []).append((title, alt.trace(search), partial(figures.trace, search)))
    if figures.rates_of(report.before):
        seen = alt.bars(report.before, report.after)
        made["metrics"] = [("", seen, partial(figures.bars, report.before, report.after))]
    if report.similarity:
        s: Any = report.similarity
        matrices = (s["names"], s["before"], s["after"], report.task.names)
        made["similarity"] = [("", alt.similarity(*matrices), partial(figures.similarity, *matrices))]
    return made


def _samples(report: Report, *, show_forget: bool) -> list[dict[str, Any]]:
    """The sheet of samples: role by role, each prompt with its image before and after.

    The same sheet is saved as figures/examples.png. Images of the forget set are None unless they are shown.
    """
    shown = samples.with_images(report.examples)
    if not shown:
        return []
    make = partial(samples.sheet, shown, show_forget=show_forget)
    figures.try_save(make, report.folder / "figures" / "examples.png")
    return [
        {
            "role": role,
            "heading": heading,
            "pairs": [
                {
                    "prompt": one.prompt,
                    "images": None
                    if role == "forget" and not show_forget
                    else [_embed(samples.png(image)) for image in (one.before, one.after)],
                }
                for one in shown
                if one.role == role
            ],
        }
        for role, heading in samples.HEADINGS.items()
        if any(one.role == role for one in shown)
    ]


def _embed(image: bytes) -> str:
    kind = image_ending(image).replace("jpg", "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def step_heading(edit: Edit) -> str:
    """The heading of the moves' steps. The moves of a layer search give λ, whatever unit the search used."""
    units = {row.step_unit for search in edit.searches for row in search.trace}
    if units and units <= set(STEPS):
        return STEPS[LAMBDA]
    return units.pop() if len(units) == 1 else "step"


def steps_table(search: Search) -> dict[str, Any]:
    """The page's table of a search: its concept, the headings of its steps and rates, one row per step."""
    rates = figures.search_rates(search)
    unit = search.trace[0].step_unit
    rows = [
        {
            "candidate": figures.short_candidate(row.candidate),
            "iteration": row.iteration,
            "step": row.step,
            "relative_norm": row.relative_norm,
            "rates": [values[i] for *_, values in rates],
            "feasible": row.feasible,
            "chosen": i == search.chosen,
        }
        for i, row in enumerate(search.trace)
    ]
    labels = [label for _, label, *_ in rates]
    return {"concept": search.concept, "heading": STEPS.get(unit, unit), "rates": labels, "rows": rows}


def _points(change: float) -> str:
    """A change of a rate in percentage points; what rounds to zero has no sign."""
    return rounded(100 * change, "+.1f")


def _html_of(card: str) -> str:
    """A run's card as HTML, without its title. No markup and no link comes out of its texts."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    reader.disable(["link", "image", "autolink", "html_inline", "html_block"])
    reader.add_render_rule("table_open", lambda *_: '<div class="scroll"><table class="card">\n')
    reader.add_render_rule("table_close", lambda *_: "</table></div>\n")
    reader.add_render_rule("th_open", lambda *_: '<th scope="col">')
    reader.add_render_rule("heading_open", lambda self, tokens, i, *_: f"<h{int(tokens[i].tag[1]) + 1}>")
    reader.add_render_rule("heading_close", lambda self, tokens, i, *_: f"</h{int(tokens[i].tag[1]) + 1}>\n")
    return str(reader.render(card.split("\n", 2)[2]))


def metric_rows(
    before: Mapping[str, Metric], after: Mapping[str, Metric], kinds: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row per metric for the page's table; rates in per cent, their changes in points.

    Args:
        kinds: `Verdict.kinds`.
    """
    rows = []
    for name, metric in after.items():
        unit = metric.reading.unit
        scale = 100 if unit == RATE else 1
        change = change_of(before[name], metric)
        shown = _number(scale * (metric.value - before[name].value), unit, "+")
        rows.append(
            {
                "name": name,
                "before": _value(before[name]),
                "after": _value(metric),
                "change": shown,
                "change_interval": _ends(change.low, change.high, 100, unit, "+") if unit == RATE else "",
                "interval": _ends(metric.low, metric.high, scale, unit),
                "judged": kinds.get(name, ""),
                "n": metric.n,
                "better": metric.reading.better,
                "reads": metric.reading.text,
                "section": metric.reading.section,
                "kind": "flat" if _may_be_none(change) else _kind(float(shown), metric.reading.better),
            }
        )
    return rows


def _may_be_none(change: Change) -> bool:
    """Whether the interval of a change holds 0: it is then neither good nor worse."""
    return change.low is not None and change.high is not None and change.low <= 0 <= change.high


def _kind(change: float, better: str) -> str:
    """Whether a change, as it is shown, is "good", "worse" or "flat"."""
    if change == 0 or better not in ("higher", "lower"):
        return "flat"
    return "good" if (change > 0) == (better == "higher") else "worse"


def _ends(low: float | None, high: float | None, scale: int, unit: str, sign: str = "") -> str:
    """An interval; empty if there is none."""
    if low is None or high is None:
        return ""
    return f"{_number(scale * low, unit, sign)} to {_number(scale * high, unit, sign)}"


def _value(metric: Metric) -> str:
    """A metric's value with its unit; "> " before a value that was cut off at its cap."""
    unit = metric.reading.unit
    text = f"{_number(100 * metric.value, unit)} %" if unit == RATE else _number(metric.value, unit)
    return f"> {text}" if metric.capped else text


def _number(value: float, unit: str, sign: str = "") -> str:
    """A rate in per cent with one decimal; cosines and areas with three; others with three digits when small.

    >>> [_number(x, "distance") for x in (0.0, 0.000123, -0.00456, 0.0256, 12.3456)]
    ['0', '0.000123', '-0.00456', '0.026', '12.346']
    >>> [_number(x, "rate", "+") for x in (-0.04, 0.0, 0.06)]
    ['0.0', '0.0', '+0.1']
    >>> _number(0.00123, "distance", "+")
    '+0.00123'
    >>> _number(24.0, "steps", "+"), _number(-0.00263, "cosine", "+"), _number(0.1, "auc")
    ('+24', '-0.003', '0.100')
    """
    if unit in DECIMALS:
        return rounded(value, f"{sign}.{DECIMALS[unit]}f")
    if value == 0:
        return "0"
    return f"{value:{sign}.3g}" if abs(value) < 0.01 else f"{value:{sign}.3f}"


def measured_on(after: Mapping[str, Metric]) -> list[str]:
    """What the metrics with a verdict were measured on: one text for each kind of sample.

    >>> from muwa.types.metric import Reading
    >>> made = Reading(role="kept", counted="generated images")
    >>> measured_on({"a": Metric(0.1, 20, reading=made), "b": Metric(0.1, 1200, reading=made)})
    ['20 to 1,200 generated images, by metric']
    """
    sizes: dict[str, list[int]] = {}
    for metric in after.values():
        if metric.reading.role and metric.n:
            sizes.setdefault(metric.reading.counted, []).append(metric.n)
    return [
        f"{min(found):,} {counted}"
        if min(found) == max(found)
        else f"{min(found):,} to {max(found):,} {counted}, by metric"
        for counted, found in sizes.items()
    ]


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """(heading, rows) of each section, in the order of `rows`; first the section without a heading."""
    groups: dict[str, list[Mapping[str, Any]]] = {"": []}
    for row in rows:
        groups.setdefault(row["section"], []).append(row)
    return [(heading, found) for heading, found in groups.items() if found]

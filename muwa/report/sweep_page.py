"""sweep.html: the settings that were swept, what came out, and every column below, folded."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muwa.drafts import write_text
from muwa.report.drawn import Drawn
from muwa.report.figures import short
from muwa.report.heat import Heat
from muwa.report.machine_paths import shown_folder
from muwa.report.runs import REPEATED, SweptRun
from muwa.report.status import FAILED, STOPPED
from muwa.report.tables.harm import Harm, sentences
from muwa.report.text import environment, rounded
from muwa.types.metric import RATE
from muwa.types.verdict import BAD, GOOD, UNSURE, word

_LONG = 28  # letters of a text in a cell; a longer one is cut, with the whole text on hover
_FOLDED = 12  # a setting with more values than this is folded under "By setting"
_DIGITS = 3  # of a number in a cell; of settings more, where two numbers of a column would look alike
# How numbers are written, beside the units of metrics.
POINTS, OBJECTIVE, SECONDS, STEP = "points", "objective", "seconds", "step"
_MEANS = {  # unit -> formats of a mean and of its deviation
    RATE: (".2f", ".2f"),
    POINTS: ("+.2f", ".2f"),
    OBJECTIVE: (".4f", ".4f"),
    SECONDS: (".0f", ".0f"),
}
_HEADINGS = {
    "objective": "objective (lower is better)",
    "relative_norm": "size, ‖Δθ‖ / ‖θ‖",
}  # column -> its heading, where that is another

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, the whole value for hover and sorting, its CSS classes, its link."""

    text: str
    whole: str = ""
    style: str = ""
    link: str = ""


@dataclass(frozen=True)
class Pictures:
    """What the page shows besides its tables.

    Args:
        outcomes: Forgetting against keeping, of all runs.
        harms: Who harms whom, with the figure of each.
        heat: Who came out how.
    """

    outcomes: Drawn | None
    harms: tuple[tuple[Harm, Drawn | None], ...]
    heat: Heat | None


def write_page(
    folder: Path,
    runs: Sequence[SweptRun],
    rows: Sequence[Row],
    *,
    results: Sequence[str],
    summary: Mapping[str, str],
    units: Mapping[str, str],
    headline: str,
    planned: int | None,
    pictures: Pictures,
) -> None:
    """Write sweep.html.

    Args:
        rows: `muwa.report.sweep.row_of` of each run.
        results: The columns of `rows` that say how a run came out.
        summary: Column -> mean ± std over the runs, where that means something.
        units: Column -> how its numbers are written (`number_text`).
        planned: How many runs the multirun makes; None if nobody knows.
    """
    swept = list(dict.fromkeys(key for run in runs for key in run.swept))
    every = list(dict.fromkeys(key for row in rows for key in row))
    named = any(key in REPEATED and key != "seed" for key in swept)
    lead = ["run", "status", "why", *([] if named else ["names"]), *swept]
    edit = ["layer", "step", "relative_norm"]
    main = [name for name in (*lead, *results, *edit) if name in every]
    page = (
        environment()
        .get_template("sweep.html")
        .render(
            folder=shown_folder(folder),
            count=number_of(runs, planned),
            headline=headline,
            figure=pictures.outcomes,
            heat=pictures.heat,
            harms=[
                {
                    "title": harm.title,
                    "sentences": sentences(harm),
                    "figure": figure if harm.worst() else None,  # else it is empty
                    "metric": harm.metric,
                }
                for harm, figure in pictures.harms
            ],
            settings=by_setting(runs, rows, results, units),
            results=results,
            heading_of=heading_of,
            folded=_FOLDED,
            tables=[
                {"id": "runs", "columns": columns, "rows": cells(rows, columns, units), "summary": summary}
                for columns in (main, every)
            ],
        )
    )
    write_text(folder / "sweep.html", page)


def number_of(runs: Sequence[SweptRun], planned: int | None) -> int:
    """How many runs a sweep has: those that started, or more if more are planned."""
    return max(len(runs), planned or 0)


def by_setting(
    runs: Sequence[SweptRun], rows: Sequence[Row], results: Sequence[str], units: Mapping[str, str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """(setting, one row per value) of the swept settings that have several finished runs for some value.

    The setting with the fewest values stands first. A row has the value, the number of finished runs, and the
    mean ± sample standard deviation of each result.
    """
    done = [(run.swept, row) for run, row in zip(runs, rows, strict=True) if run.results]
    tables = []
    for setting in dict.fromkeys(key for swept, _ in done for key in swept):
        values: dict[str, list[Row]] = {}
        for swept, row in done:
            values.setdefault(swept[setting], []).append(row)
        if len(values) > 1 and max(map(len, values.values())) > 1:
            shown = shortened(list(values))
            lines = [
                {
                    "value": Cell(text or "not read", value),
                    "runs": len(mine),
                    "cells": [
                        mean_and_deviation([row[name] for row in mine if name in row], units.get(name, ""))
                        for name in results
                    ],
                }
                for text, (value, mine) in zip(shown, values.items(), strict=True)
            ]
            tables.append((setting, lines))
    return sorted(tables, key=lambda one: len(one[1]))


def heading_of(column: str) -> str:
    """The heading of a column of `muwa.report.sweep.row_of`, on the page and on the console."""
    return _HEADINGS.get(column, column)


def number_text(value: float, unit: str) -> str:
    """A number of a column: rates in per cent, changes in points, others with three digits.

    Args:
        unit: The unit of a metric, `POINTS`, `OBJECTIVE`, `SECONDS`, `STEP`, or "" for other numbers.

    >>> number_text(0.98485, "rate"), number_text(-0.1263, POINTS), number_text(-0.01, POINTS)
    ('98.5 %', '-0.1', '0.0')
    >>> number_text(0.0012626, OBJECTIVE), number_text(83.27, SECONDS), number_text(0.061234, "cosine")
    ('0.0013', '83', '0.061')
    """
    if unit == RATE:
        return f"{rounded(100 * value, '.1f')} %"
    spec = {POINTS: "+.1f", OBJECTIVE: ".4f", SECONDS: ".0f", "steps": ".0f", "cosine": ".3f", "auc": ".3f"}
    return rounded(value, spec.get(unit, f".{_DIGITS}g"))


def mean_and_deviation(values: Sequence[Any], unit: str = "") -> str:
    """Mean ± sample standard deviation of numbers; how many of each, of truth values and texts.

    Args:
        unit: As in `number_text`; means have one decimal more than single rates and changes.

    >>> mean_and_deviation([0.5, 1.0]), mean_and_deviation([2]), mean_and_deviation([True, False])
    ('0.75 ± 0.35', '2', '1 of 2')
    >>> mean_and_deviation(["shown", "failed", "shown"])
    '2 shown, 1 failed'
    >>> mean_and_deviation([0.5, 1.0], "rate"), mean_and_deviation([-0.13, 0.0], POINTS)
    ('75.00 ± 35.36 %', '-0.07 ± 0.09')
    """
    if values and all(isinstance(value, bool) for value in values):
        return f"{sum(values)} of {len(values)}"
    if values and all(isinstance(value, str) for value in values):
        return ", ".join(f"{count} {text}" for text, count in Counter(values).most_common())
    numbers = [value for value in values if isinstance(value, int | float)]
    if not numbers:
        return ""
    scale, end = (100, " %") if unit == RATE else (1, "")
    spec, deviation = _MEANS.get(unit, (".4g", ".2g"))
    mean = rounded(scale * statistics.mean(numbers), spec)
    if len(numbers) < 2:
        return mean + end
    return f"{mean} ± {scale * statistics.stdev(numbers):{deviation}}{end}"


def cells(rows: Sequence[Row], columns: Sequence[str], units: Mapping[str, str]) -> list[list[Cell]]:
    """The cells of a table, row by row.

    Args:
        units: Column -> how its numbers are written (`number_text`); those of other columns are told apart.
    """
    made = []
    for column in columns:
        values = [
            "" if row.get(column) is None else row[column] for row in rows
        ]  # a method may choose no layer
        if column == "layer":
            texts = [short(value) if value else "" for value in values]
        elif column in units:
            numbers = [_number(value) for value in values]
            texts = [
                str(value) if number is None else number_text(number, units[column])
                for value, number in zip(values, numbers, strict=True)
            ]
        else:
            texts = shortened(values)
        made.append([_cell(column, value, text) for value, text in zip(values, texts, strict=True)])
    return [list(row) for row in zip(*made, strict=True)]


def _cell(column: str, value: Any, text: str) -> Cell:
    if isinstance(value, bool):
        return Cell("yes" if value else "no", style="" if value else "worse")
    if column == "verdict":
        return Cell(str(value), style=next((kind for kind in (GOOD, UNSURE, BAD) if word(kind) == value), ""))
    if column == "run":
        return Cell(str(value), link=f"{value}/report.html")
    style = "num" if _number(value) is not None else "worse" if value in (FAILED, STOPPED) else ""
    return Cell(text, "" if text == str(value) else str(value), style)


def shortened(values: Sequence[Any]) -> list[str]:
    """Each value as a short text. Different values have different texts.

    Numbers, also those that are written as text, get as many digits as tell them apart; long texts are cut.

    >>> shortened([0.123456789, 0.123456001, 2.0]), shortened(["1.8480137906", "1.9730929278"])
    (['0.123457', '0.123456', '2'], ['1.85', '1.97'])
    >>> shortened(["visual.transformer.resblocks.3.attn.in_proj", "b"])
    ['visual.transformer.resblock…', 'b']
    """
    numbers = [_number(value) for value in values]
    for digits in range(_DIGITS, 18):
        texts = [
            str(value) if number is None else f"{number:.{digits}g}"
            for value, number in zip(values, numbers, strict=True)
        ]
        if len(set(texts)) == len(
            {str(value) if n is None else n for value, n in zip(values, numbers, strict=True)}
        ):
            break
    cut = [text if len(text) <= _LONG else f"{text[: _LONG - 1]}…" for text in texts]
    return cut if len(set(cut)) == len(set(texts)) else texts


def _number(value: Any) -> float | None:
    """The value as a number; None for a truth value and for other texts."""
    if isinstance(value, bool) or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

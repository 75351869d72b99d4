"""The figures of a report. Each function makes a new figure, touches no global state and opens no window."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from muwa.drafts import new_file
from muwa.report.runs import Variant
from muwa.report.text import rounded
from muwa.runtime.notices import notice
from muwa.types.metric import RATE, Metric
from muwa.types.search import BOTH_TOWERS, Candidate, Evaluation, Search

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8a8a"
MISSING = "#c9c9c9"  # a cell of a matrix that was not measured
TOWER_COLOURS = {"vision": BLUE, "text": ORANGE}
SIZE = "‖Δθ‖ / ‖θ‖, %"  # how far a step went
_LAYERS = 12  # the most layers in a figure of gains
_CELLS = 2500  # the most cells of a matrix that have a text each: more would make a page of megabytes
_BARS = 8  # the most rates in one figure; of more, those under the report's first heading are shown

# Rates of a search by the name that its evaluations give them: name, label, colour, line style.
SEARCH_RATES = (
    ("forget_top5", "forget top-5", RED, "-"),
    ("forget_top1", "forget top-1", RED, ":"),
    ("retain_top1", "retain top-1", BLUE, "-"),
    ("utility_top1", "utility top-1", GREEN, "-"),
    ("earlier_top1", "forgotten before, top-1", "#8a5cc2", ":"),
)


def short(layer: str) -> str:
    """A layer's name for a label, without the tower's prefix and without `.weight`.

    >>> short("visual.transformer.resblocks.3.attn.in_proj_weight")
    '3.attn.in_proj'
    """
    name = re.sub(r"^(visual|vision_model|text_model|text)\.(?=.*\d)", "", layer)
    name = re.sub(r"(transformer\.|encoder\.|trunk\.)?(resblocks|layers|blocks)\.", "", name)
    return re.sub(r"[._]weight", "", name)


def short_candidate(candidate: Candidate) -> str:
    """A candidate for a label: its tower, unless that is both, and its layers.

    >>> short_candidate(Candidate({"": "visual.transformer.resblocks.3.attn.in_proj_weight"}, "vision"))
    'vision 3.attn.in_proj'
    """
    layers = " + ".join(map(short, candidate.names or candidate.layers.values()))
    return layers if candidate.tower == BOTH_TOWERS else f"{candidate.tower} {layers}"


def search_rates(search: Search) -> list[tuple[str, str, str, str, list[float]]]:
    """(name, label, colour, line style, one rate per evaluation) of what a search's figure and table show.

    They are those of `SEARCH_RATES` that every evaluation has. A search without any of them shows `forgotten`
    and `kept`.
    """
    rows = search.trace
    rates = [
        (name, label, colour, style, [row.metrics[name] for row in rows])
        for name, label, colour, style in SEARCH_RATES
        if all(name in row.metrics for row in rows)
    ]
    return rates or [
        ("forgotten", "forget", RED, "-", [row.forgotten for row in rows]),
        ("kept", "kept", BLUE, "-", [row.kept for row in rows]),
    ]


def blank(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its (rows, columns) axes, in the style of all reports."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, color="#999999")
    return figure, axes


def hover(artist: Any, texts: Sequence[str]) -> None:
    """Give each point or cell of a collection, or one bar, the text that shows where the mouse rests on it.

    matplotlib writes such texts as links, which `muwa.report.svg.inline` turns into titles.
    A PNG ignores them.
    """
    if hasattr(artist, "set_urls"):
        artist.set_urls(list(texts))
    else:
        artist.set_url(texts[0])


def pareto(search: Search) -> Figure:
    """Importance against alignment of every layer, one panel per tower.

    A line joins the layers of the Pareto front, which are named. Rings mark the layers that were edited.
    """
    towers = list(dict.fromkeys(score.tower for score in search.scores.values()))
    towers.sort(key=[*TOWER_COLOURS, *towers].index)
    figure, axes = blank(5.2 * len(towers), 4.4, 1, len(towers))
    chosen = edited_layers(search)
    for axis, tower in zip(axes.flat, towers, strict=True):
        mine = {
            name: (s.alignment, s.importance)
            for name, s in search.scores.items()
            if s.tower == tower and s.alignment is not None and s.importance > 0
        }
        front = sorted((name for name in search.front if name in mine), key=lambda name: mine[name][0])
        axis.set_title(
            f"{tower} tower: {len(mine)} layers, {len(front)} on the front", fontsize=10, loc="left"
        )
        _scores(axis, mine, front, chosen, TOWER_COLOURS.get(tower, GREEN))
    return figure


def gains(search: Search) -> Figure:
    """The layers of largest gain. Solid bars were searched; the names of edited layers are red."""
    gain = {name: score.gain for name, score in search.scores.items() if score.gain}
    names = sorted(gain, key=lambda name: -gain[name])[:_LAYERS]
    tried = {name for row in search.trace for name in (*row.candidate.names, *row.candidate.layers.values())}
    chosen = edited_layers(search)
    figure, axes = blank(7.2, 0.8 + 0.28 * len(names))
    axis = axes[0, 0]
    for place, name in enumerate(names):
        colour = TOWER_COLOURS.get(search.scores[name].tower, GREEN)
        (bar,) = axis.barh(place, gain[name], color=colour, alpha=1.0 if name in tried else 0.35)
        state = "edited" if name in chosen else "tried" if name in tried else "not tried"
        hover(bar, [f"{name}: gain {gain[name]:.3g}, {state}"])
    labels = [f"{search.scores[name].tower} {short(name)}" for name in names]
    axis.set_yticks(range(len(names)), labels, fontsize=8)
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
        label.set_color(RED if name in chosen else "#333333")
    axis.invert_yaxis()
    axis.set_xlabel("gain: forgetting per relative change of what is retained", fontsize=9)
    return figure


def edited_layers(search: Search) -> set[str]:
    """The names of the layers that the chosen step edits; empty if no step was chosen."""
    if search.chosen is None:
        return set()
    candidate = search.trace[search.chosen].candidate
    return {*candidate.names, *candidate.layers.values()}


def _scores(
    axis: Any, at: Mapping[str, tuple[float, float]], front: Sequence[str], chosen: set[str], colour: str
) -> None:
    """One panel of `pareto`: the layers of one tower.

    Args:
        at: Layer name -> (alignment, importance).
    """
    dots = axis.scatter([x for x, _ in at.values()], [y for _, y in at.values()], s=16, c="#c2c2c2")
    hover(dots, [f"{short(n)}: importance {y:.3g}, alignment {x:.3f}" for n, (x, y) in at.items()])
    x, y = [at[name][0] for name in front], [at[name][1] for name in front]
    axis.plot(x, y, "-o", color=colour, markersize=5, linewidth=1.2)
    axis.set_yscale("log")
    axis.set_xlabel("alignment  |cos(g_f, g_r)|   (lower: safer)", fontsize=9)
    axis.set_ylabel("importance  |g_f| / |θ|   (higher: stronger)", fontsize=9)
    widest = max((x for x, _ in at.values()), default=1.0)
    axis.set_xlim(-0.04 * widest, widest * 1.06)
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top * (top / bottom) ** 0.08)
    _label(axis, front, x, y, chosen)
    rings = [at[name] for name in at if name in chosen]
    axis.scatter(
        [x for x, _ in rings], [y for _, y in rings], s=150, facecolors="none", edgecolors=RED, linewidths=1.8
    )


def _label(axis: Any, names: Sequence[str], x: Sequence[float], y: Sequence[float], chosen: set[str]) -> None:
    """Write the names of a front's points to the right of the panel, with thin lines to the points."""
    if not names:
        return
    low, high = np.log(axis.get_ylim())
    order = sorted(range(len(names)), key=lambda i: -y[i])
    places = np.array([(np.log(y[i]) - low) / (high - low) for i in order])
    gap = min(0.06, 0.95 / len(names))
    for i in range(1, len(places)):  # push down what would overlap, then lift all if the last fell off
        places[i] = min(places[i], places[i - 1] - gap)
    if places[-1] < 0.02:
        lifted = 0.02 + gap * np.arange(len(places))[::-1]
        places = np.maximum(places, lifted)
    for place, i in zip(places, order, strict=True):
        axis.annotate(
            short(names[i]),
            (x[i], y[i]),
            xytext=(1.02, place),
            textcoords="axes fraction",
            fontsize=7.5,
            va="center",
            color=RED if names[i] in chosen else "#333333",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bdbdbd", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )


def trace(search: Search) -> Figure:
    """What each step did, one panel per candidate: rates on the probe set against the size of the step."""
    panels: dict[tuple[str, str], list[int]] = {}  # candidate -> its places in the trace
    for i, row in enumerate(search.trace):
        panels.setdefault((row.candidate.tower, row.candidate.name), []).append(i)
    columns = min(4, max(1, len(panels)))
    rows = -(-len(panels) // columns) or 1
    figure, axes = blank(max(6.2, 3.1 * columns), 2.5 * rows + 0.5, rows, columns)  # room for the legend
    handles: dict[str, Any] = {}
    for axis, places in zip(axes.flat, panels.values(), strict=False):
        _steps(axis, search, places)
        axis.set_title(short_candidate(search.trace[places[0]].candidate), fontsize=8.5, loc="left")
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    if handles:
        place = {"loc": "outside upper center", "ncols": 5}
        figure.legend(handles.values(), handles.keys(), fontsize=8, frameon=False, **place)
    figure.supxlabel(f"size of the step, {SIZE} (log)", fontsize=9)
    figure.supylabel("rate on the probe set, %", fontsize=9)
    return figure


def _steps(axis: Any, search: Search, places: Sequence[int]) -> None:
    """One panel of `trace`: the evaluations of one candidate, given by their places in the trace."""

    def size(row: Evaluation) -> float:
        return 100 * row.relative_norm

    moved = [i for i in places if search.trace[i].relative_norm > 0]
    order = sorted(moved, key=lambda i: search.trace[i].relative_norm)
    x = [size(search.trace[i]) for i in order]
    for _, label, colour, style, rates in search_rates(search):
        y = [100 * rates[i] for i in order]
        axis.plot(x, y, style, color=colour, linewidth=1.3, label=label)
        dots = axis.scatter(x, y, s=9, color=colour)
        hover(
            dots,
            [
                f"{label} {rounded(rate, '.1f')} % at a size of {at:.3g} %"
                for at, rate in zip(x, y, strict=True)
            ],
        )
    feasible = [size(search.trace[i]) for i in order if search.trace[i].feasible]
    if feasible:
        axis.axvspan(min(feasible), max(x) * 1.05, color=GREEN, alpha=0.07, linewidth=0)
    if search.chosen is not None and search.chosen in places:
        at = size(search.trace[search.chosen])
        axis.axvline(at, color="#222222", linewidth=1.2, linestyle="--", label="chosen step")
    axis.set_xscale("log")
    axis.set_ylim(-4, 104)
    axis.set_xticks(*_ticks(x))
    axis.minorticks_off()


def _ticks(x: Sequence[float]) -> tuple[list[float], list[str]]:
    """Up to three places and their labels for a logarithmic axis."""
    if not x or min(x) <= 0:
        return [], []
    places = np.geomspace(min(x), max(x), 3) if max(x) > min(x) else np.array([x[0]])
    return places.tolist(), [f"{place:.0f}" if place >= 10 else f"{place:.2g}" for place in places]


def similarity(
    names: Sequence[str],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    forgotten: Sequence[str],
) -> Figure:
    """Mean cosine of each name's images (row) with each name (column), before and after on one scale."""
    size = 0.28 * len(names) + 2.2
    figure, axes = blank(2 * size + 1, size + 0.4, 1, 2)
    every = np.array([before, after], float)
    for axis, values, title in zip(axes.flat, every, ("before", "after"), strict=True):
        image = axis.imshow(values, vmin=every.min(), vmax=every.max(), cmap="viridis")
        axis.grid(False)
        _cells(axis, names, names, values, f"mean cosine {{:.3f}} {title}".format)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes.flat[0] else [""] * len(names), fontsize=7)
        for tick, name in zip(
            [*axis.get_xticklabels(), *axis.get_yticklabels()], [*names, *names], strict=True
        ):
            if name in forgotten:
                tick.set_color(RED)
                tick.set_fontweight("bold")
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, label="mean cosine")
    return figure


def _cells(
    axis: Any, rows: Sequence[str], columns: Sequence[str], values: Any, text: Callable[[float], str]
) -> None:
    """Texts for the cells of a matrix, as `hover`: the row's name, the column's name, and `text(value)`."""
    places = [(row, column) for row in range(len(rows)) for column in range(len(columns))]
    if len(places) > _CELLS:
        return
    cells = PatchCollection(
        [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in places], facecolor="#00000000"
    )
    hover(cells, [f"{rows[row]} × {columns[column]}: {text(values[row][column])}" for row, column in places])
    axis.add_collection(cells, autolim=False)


def rates_of(metrics: Mapping[str, Metric]) -> list[str]:
    """The names of the metrics that are rates in [0, 1]."""
    return [name for name, metric in metrics.items() if metric.reading.unit == RATE]


def bars(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> Figure:
    """Rates before and after, with their 95 % intervals.

    If there are too many for one figure, only those under the report's first heading are shown.
    """
    names = rates_of(before)
    if len(names) > _BARS:
        names = [name for name in names if not before[name].reading.section] or names[:_BARS]
    figure, axes = blank(6.4, 0.62 * len(names) + 1.0)
    axis = axes[0, 0]
    for shift, metrics, colour, label in ((0.19, before, GREY, "before"), (-0.19, after, BLUE, "after")):
        values = [100 * metrics[name].value for name in names]
        places = np.arange(len(names))[::-1] + shift
        drawn = axis.barh(places, values, height=0.34, color=colour, label=label)
        for bar, place, value, name in zip(drawn, places, values, names, strict=True):
            metric = metrics[name]
            hover(bar, [f"{name} {label}: {rounded(value, '.1f')} % of {metric.n}"])
            low = 100 * (metric.low if metric.low is not None else metric.value)
            high = 100 * (metric.high if metric.high is not None else metric.value)
            axis.plot([low, high], [place, place], color="#333333", linewidth=1)
            axis.text(max(value, high) + 1.5, place, rounded(value, ".1f"), va="center", fontsize=8)
    axis.set_yticks(
        np.arange(len(names))[::-1], [f"{name}  (n={after[name].n})" for name in names], fontsize=9
    )
    axis.set_xlim(0, 112)
    axis.set_xlabel("rate on held-out data, % (line: 95 % interval)", fontsize=9)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def kept_against_forgotten(
    variants: Mapping[Variant, tuple[Sequence[float], Sequence[float]]], forget_accuracy: str
) -> Figure:
    """The runs of a sweep: one point per variant, the mean of its runs, with one standard deviation as bars.

    Args:
        variants: Variant -> (forget accuracy after the edit in per cent, change of what is kept in points),
            one value per run. The last setting decides the marker; the method and the other settings
            decide the colour. A line joins the points of a colour.
        forget_accuracy: The name of the forget accuracy, for the axis.
    """
    figure, axes = blank(8.6, 4.6)
    axis = axes[0, 0]
    series = {variant: replace(variant, settings=variant.settings[:-1]).label for variant in variants}
    last = {variant: variant.settings[-1] if variant.settings else "" for variant in variants}
    colours = {name: f"C{i % 10}" for i, name in enumerate(dict.fromkeys(series.values()))}
    markers = {setting: "os^Dvp*hX"[i % 9] for i, setting in enumerate(dict.fromkeys(last.values()))}
    means: dict[str, list[tuple[float, float]]] = {name: [] for name in colours}
    for i, (variant, values) in enumerate(variants.items()):
        x, y = (float(np.mean(each)) for each in values)
        means[series[variant]].append((x, y))
        marker, colour = markers[last[variant]], colours[series[variant]]
        _point(axis, values, fmt=marker, color=colour, markersize=10 - 5 * i / len(variants))
    for name, points in means.items():
        axis.plot(*zip(*points, strict=True), color=colours[name], linewidth=1.2, label=name)
    for setting in filter(None, markers):
        axis.plot([], [], markers[setting], color="#666666", markerfacecolor="none", label=setting)
    axis.axhline(0, color="#999999", linewidth=0.8)
    axis.set_xlim(-4, max(20.0, axis.get_xlim()[1]))
    axis.set_xlabel(f"{forget_accuracy} after, %   (left: forgotten)", fontsize=9)
    axis.set_ylabel("change of retain and utility top-1, points", fontsize=9)
    figure.legend(fontsize=7, loc="outside right upper")
    return figure


def _point(axis: Any, values: tuple[Sequence[float], Sequence[float]], **style: Any) -> None:
    """A mean with one standard deviation as bars; the horizontal bar is cut at 0 and 100."""
    x, y = (float(np.mean(each)) for each in values)
    wide, high = (float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values)
    ends = [[min(wide, x)], [min(wide, 100 - x)]]
    axis.errorbar(x, y, xerr=ends, yerr=high, markerfacecolor="none", elinewidth=0.6, capsize=2, **style)


def harm(
    rows: Sequence[str], columns: Sequence[str], points: np.ndarray, forgotten: np.ndarray, note: str
) -> Figure:
    """What forgetting a row's name cost the name of each column, as a heat map centred at 0.

    Args:
        rows: What was forgotten.
        columns: The names; those of the rows stand first.
        points: (rows, columns) change of the column's accuracy in points; NaN where it was not measured.
        forgotten: (rows, columns) bool: the name itself was forgotten. Such a cell is hatched: it has no
            colour of the scale, which is that of the other names.
        note: A short text above the matrix.
    """
    cell, size = (0.34, 8.0) if len(columns) <= 40 else (0.19, 6.5)
    longest = max(map(len, (*rows, *columns)), default=0) * size * 0.6 / 72
    wide, high = cell * len(columns) + longest + 1.9, cell * len(rows) + longest + 1.0
    figure, axes = blank(max(wide, 6.4), max(high, 2.6))
    axis = axes[0, 0]
    shown = np.ma.masked_invalid(np.where(forgotten, np.nan, points))
    most = max(1.0, float(np.abs(shown).max())) if shown.count() else 1.0
    image = axis.imshow(shown, cmap=matplotlib.colormaps["RdBu"], vmin=-most, vmax=most, interpolation="none")
    axis.set_facecolor(MISSING)
    axis.grid(False)
    axis.set_title(textwrap.fill(note, max(24, 4 * len(columns))), fontsize=8, loc="left")
    axis.set_xticks(range(len(columns)), columns, rotation=90, fontsize=size)
    axis.set_yticks(range(len(rows)), rows, fontsize=size)
    axis.tick_params(length=0)
    axis.set_ylabel("forgotten", fontsize=9)
    targets = {columns[column] for _, column in np.argwhere(forgotten)}
    for label in axis.get_xticklabels():
        label.set_color(RED if label.get_text() in targets else "#333333")
    _cells(axis, rows, columns, np.where(forgotten, np.nan, points), _points_lost)
    for row, column in np.argwhere(forgotten):
        axis.add_patch(_hatched((column - 0.5, row - 0.5)))
    if cell > 0.3:
        _numbers(axis, shown, most)
    handles: list[Patch] = [_hatched((0, 0), label="forgotten itself")]
    if (~np.isfinite(points) & ~forgotten).any():
        handles.append(Patch(facecolor=MISSING, label="not measured"))
    figure.legend(handles=handles, fontsize=8, loc="outside lower left", ncols=2, frameon=False)
    bar = figure.colorbar(image, ax=axis, shrink=min(1.0, 1.6 / high + 0.3), pad=0.01)
    bar.set_label("change of the name's\naccuracy, points", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _points_lost(value: float) -> str:
    return (
        f"{rounded(value, '+.1f')} points" if np.isfinite(value) else "no change of another name was measured"
    )


def _hatched(corner: tuple[float, float], **style: Any) -> Rectangle:
    """A cell of `harm` for the forgotten name itself; its lower left corner is at `corner`."""
    return Rectangle(
        corner, 1, 1, facecolor="#ffffff", edgecolor="#9a9a9a", hatch="////", linewidth=0.4, **style
    )


def _numbers(axis: Any, points: np.ma.MaskedArray, most: float) -> None:
    """Write every change that is not 0 into its cell of `harm`."""
    for row, column in np.argwhere(~np.ma.getmaskarray(points)):
        value = float(points[row, column])
        text = rounded(value, "+.0f" if value == round(value) else "+.1f")
        if text != "0":
            colour = "#ffffff" if abs(value) > 0.6 * most else "#111111"  # on a dark page too
            axis.text(column, row, text, ha="center", va="center", fontsize=6.5, color=colour)


def png(figure: Figure) -> bytes:
    """A figure as PNG. Texts are shown as they are: a name with "$" or "\\" in it is no formula.

    Only the labels that an axis makes for its own numbers are typeset (10⁻² on a logarithmic axis).
    """
    numbers = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for ticks in (axis.get_major_ticks(), axis.get_minor_ticks())
        for tick in ticks
        for label in (tick.label1, tick.label2)
        if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter)
    }
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)  # here: savefig would draw the whole figure once for it
        figure.set_layout_engine(None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG (`png`). The file appears when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as draft:
        draft.write_bytes(png(figure))


def try_save(make: Callable[[], Figure], path: Path) -> Figure | None:
    """Make a figure and write it. If that fails, warn and return None: it must not cost a run its report.

    A file of an earlier attempt is then removed.
    """
    try:
        figure = make()
        save(figure, path)
    except Exception as error:  # whatever a font, a name or an odd value does to matplotlib
        notice(f"the figure {path.name} could not be drawn: {type(error).__name__}: {error}")
        path.unlink(missing_ok=True)
        return None
    return figure

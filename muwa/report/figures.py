"""The figures of a report. Each function draws on a figure of its own; nothing global is touched, no window opened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from muwa.types.metric import Metric
from muwa.types.search import Search

# Okabe and Ito's palette: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8a8a8a"
_TOWERS = {"vision": BLUE, "text": ORANGE}
_NO_RATE = re.compile(
    r"/(cosine|clip_score|fid|kid|perception|cognition|correlation|steps_\w+)$|_brier$|auc$|_similarity(_floor)?$"
)
_BARS = 16  # more than so many accuracies are the table's; the figure then shows the main ones
_MAIN = ("forget/", "retain/", "utility/")


def short(layer: str) -> str:
    """A layer's name for a label: the tower's prefix and `.weight` taken off.

    >>> short("visual.transformer.resblocks.3.attn.in_proj_weight")
    '3.attn.in_proj'
    """
    name = re.sub(r"^(visual|vision_model|text_model|text)\.(?=.*\d)", "", layer)
    name = re.sub(r"(transformer\.|encoder\.|trunk\.)?(resblocks|layers|blocks)\.", "", name)
    return re.sub(r"[._]weight", "", name)


def is_rate(metric: str) -> bool:
    """Whether a metric, by its name, is a share in [0, 1] and shown in per cent.

    >>> is_rate("forget/top1"), is_rate("retain/cosine"), is_rate("quality/fid")
    (True, False, False)
    >>> is_rate("mia/logistic_auc"), is_rate("relearn/steps_5"), is_rate("gap/forget_similarity_floor")
    (False, False, False)
    """
    return not _NO_RATE.search(metric)


def blank(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """A figure of `width` x `height` inches and its (rows, columns) axes, in the house's look."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, color="#999999")
    return figure, axes


def pareto(search: Search) -> Figure:
    """Importance against alignment of every layer, one panel a tower; the front joined and named, the choice ringed."""
    towers = [tower for tower in _TOWERS if any(s.tower == tower for s in search.scores.values())]
    figure, axes = blank(5.2 * len(towers), 4.4, 1, len(towers))
    chosen = search.trace[search.chosen].layer if search.chosen is not None else None
    for axis, tower in zip(axes.flat, towers, strict=True):
        mine = {name: s for name, s in search.scores.items() if s.tower == tower and s.importance > 0}
        axis.scatter([s.alignment for s in mine.values()], [s.importance for s in mine.values()], s=16, c="#c2c2c2")
        front = sorted((name for name in search.front if name in mine), key=lambda name: mine[name].alignment)
        x, y = [mine[name].alignment for name in front], [mine[name].importance for name in front]
        axis.plot(x, y, "-o", color=_TOWERS[tower], markersize=5, linewidth=1.2)
        axis.set_yscale("log")
        axis.set_title(f"{tower} tower: {len(mine)} layers, {len(front)} on the front", fontsize=10, loc="left")
        axis.set_xlabel("alignment  |cos(g_f, g_r)|   (lower: safer)", fontsize=9)
        axis.set_ylabel("importance  |g_f| / |θ|   (higher: stronger)", fontsize=9)
        widest = max((s.alignment for s in mine.values()), default=1.0)
        axis.set_xlim(-0.04 * widest, widest * 1.06)
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top * (top / bottom) ** 0.08)
        _label(axis, front, x, y, chosen)
        if chosen in mine:
            axis.scatter([mine[chosen].alignment], [mine[chosen].importance], s=150, facecolors="none", edgecolors=RED,
                         linewidths=1.8)  # fmt: skip
    return figure


def _label(axis: Any, names: Sequence[str], x: Sequence[float], y: Sequence[float], chosen: str | None) -> None:
    """Name the points of a front at the right of the panel, by falling height, joined to their points by thin lines."""
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
            short(names[i]), (x[i], y[i]), xytext=(1.02, place), textcoords="axes fraction", fontsize=7.5, va="center",
            color=RED if names[i] == chosen else "#333333", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#bdbdbd", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip


def trace(search: Search) -> Figure:
    """What each step did, a panel a layer: accuracies on the probe pictures against the relative size of the step."""
    layers = list(dict.fromkeys(row.layer for row in search.trace))
    columns = min(4, max(1, len(layers)))
    rows = -(-len(layers) // columns) or 1
    figure, axes = blank(max(6.2, 3.1 * columns), 2.5 * rows + 0.5, rows, columns)  # room for the legend
    lines = (("forget_top5", "forget top-5", RED, "-"), ("forget_top1", "forget top-1", RED, ":"),
             ("retain_top1", "retain top-1", BLUE, "-"), ("utility_top1", "utility top-1", GREEN, "-"))  # fmt: skip
    chosen = search.trace[search.chosen] if search.chosen is not None else None
    for axis, layer in zip(axes.flat, layers, strict=False):
        moved = (row for row in search.trace if row.layer == layer and row.relative_norm > 0)
        mine = sorted(moved, key=lambda row: row.relative_norm)
        x = [100 * row.relative_norm for row in mine]
        for key, label, colour, style in lines:
            axis.plot(x, [100 * getattr(row, key) for row in mine], style, color=colour, linewidth=1.3, marker="o",
                      markersize=2.5, label=label)  # fmt: skip
        feasible = [100 * row.relative_norm for row in mine if row.feasible]
        if feasible:
            axis.axvspan(min(feasible), max(x) * 1.05, color=GREEN, alpha=0.07, linewidth=0)
        if chosen is not None and chosen.layer == layer:
            axis.axvline(
                100 * chosen.relative_norm, color="#222222", linewidth=1.2, linestyle="--", label="chosen step"
            )
        axis.set_xscale("log")
        axis.set_ylim(-4, 104)
        tower = next(row.tower for row in search.trace if row.layer == layer)
        axis.set_title(short(layer) if tower == "both" else f"{tower} {short(layer)}", fontsize=8.5, loc="left")
        axis.set_xticks(*_ticks(x))
        axis.minorticks_off()
    for axis in list(axes.flat)[len(layers) :]:
        axis.set_visible(False)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, fontsize=8, frameon=False)
    figure.supxlabel(
        f"size of the step, % of the norm of {'the layer' if search.scores else 'what it changes'} (log)", fontsize=9
    )
    figure.supylabel("accuracy on probe pictures, %", fontsize=9)
    return figure


def _ticks(x: Sequence[float]) -> tuple[list[float], list[str]]:
    """Three or so round places for a logarithmic axis."""
    if not x or min(x) <= 0:
        return [], []
    places = np.geomspace(min(x), max(x), 3) if max(x) > min(x) else np.array([x[0]])
    return places.tolist(), [f"{place:.0f}" if place >= 10 else f"{place:.2g}" for place in places]


def similarity(names: Sequence[str], before: Sequence[Sequence[float]], after: Sequence[Sequence[float]],
               forgotten: Sequence[str]) -> Figure:  # fmt: skip
    """Mean cosine of each name's pictures (row) with each name (column), before and after on one scale."""
    size = 0.28 * len(names) + 2.2
    figure, axes = blank(2 * size + 1, size + 0.4, 1, 2)
    every = np.array([before, after], float)
    for axis, values, title in zip(axes.flat, every, ("before", "after"), strict=True):
        image = axis.imshow(values, vmin=every.min(), vmax=every.max(), cmap="viridis")
        axis.grid(False)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names if axis is axes.flat[0] else [""] * len(names), fontsize=7)
        for tick, name in zip([*axis.get_xticklabels(), *axis.get_yticklabels()], [*names, *names], strict=True):
            if name in forgotten:
                tick.set_color(RED)
                tick.set_fontweight("bold")
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, label="mean cosine")
    return figure


def bars(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> Figure:
    """Every accuracy before and after, with its 95 % interval; of many, those of forget, retain and utility."""
    names = [name for name in before if is_rate(name)]
    if len(names) > _BARS:
        names = [name for name in names if name.startswith(_MAIN)] or names[:_BARS]
    figure, axes = blank(6.4, 0.62 * len(names) + 1.0)
    axis = axes[0, 0]
    for shift, metrics, colour, label in ((0.19, before, GREY, "before"), (-0.19, after, BLUE, "after")):
        values = [100 * metrics[name].value for name in names]
        places = np.arange(len(names))[::-1] + shift
        axis.barh(places, values, height=0.34, color=colour, label=label)
        for place, value, name in zip(places, values, names, strict=True):
            metric = metrics[name]
            low = 100 * (metric.low if metric.low is not None else metric.value)
            high = 100 * (metric.high if metric.high is not None else metric.value)
            axis.plot([low, high], [place, place], color="#333333", linewidth=1)
            axis.text(max(value, high) + 1.5, place, f"{value:.1f}", va="center", fontsize=8)
    axis.set_yticks(np.arange(len(names))[::-1], [f"{name}  (n={after[name].n})" for name in names], fontsize=9)
    axis.set_xlim(0, 112)
    axis.set_xlabel("accuracy on held-out pictures, % (line: 95 % interval)", fontsize=9)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def kept_against_forgotten(variants: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """The runs of a sweep: a point a variant, the mean over its runs, with one standard deviation as bars.

    Args:
        variants: "method (setting=value, ...)" -> (forget/top5 after in per cent, change of what is kept in points), a
            value a run. The last setting is the marker's shape, all before it its colour; one line joins a colour.
    """
    figure, axes = blank(8.6, 4.6)
    axis = axes[0, 0]
    split = {label: re.fullmatch(r"(.*?)(?:(, | \()([^,(]+)\))?", label) for label in variants}
    named = {label: (found[1] + ")" * (found[2] == ", "), found[3] or "") for label, found in split.items() if found}
    colours = {name: f"C{i % 10}" for i, name in enumerate(dict.fromkeys(name for name, _ in named.values()))}
    shapes = {last: "os^Dvp*hX"[i % 9] for i, last in enumerate(dict.fromkeys(last for _, last in named.values()))}
    means: dict[str, list[tuple[float, float]]] = {name: [] for name in colours}
    for i, (label, values) in enumerate(variants.items()):
        name, last = named[label]
        x, y = (float(np.mean(each)) for each in values)
        wide, high = (float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values)
        means[name].append((x, y))
        axis.errorbar(x, y, xerr=[[min(wide, x)], [min(wide, 100 - x)]], yerr=high, fmt=shapes[last], color=colours[name],
                      markerfacecolor="none", markersize=10 - 5 * i / len(variants), elinewidth=0.6, capsize=2)  # fmt: skip
    for name, points in means.items():
        axis.plot(*zip(*points, strict=True), color=colours[name], linewidth=1.2, label=name)
    for last in filter(None, shapes):
        axis.plot([], [], shapes[last], color="#666666", markerfacecolor="none", label=last)
    axis.axhline(0, color="#999999", linewidth=0.8)
    axis.set_xlim(-4, max(20.0, axis.get_xlim()[1]))
    axis.set_xlabel("forget/top5 after, %   (left: forgotten)", fontsize=9)
    axis.set_ylabel("change of retain and utility top-1, points", fontsize=9)
    figure.legend(fontsize=7, loc="outside right upper")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.stem}.draft.png")
    figure.savefig(draft, facecolor="white")
    draft.replace(path)

"""Show on one HTML page what W&B gets of runs that were logged offline. Nothing is sent.

python -m muwa.report.wandb_preview FOLDER                # a run or a sweep; writes FOLDER/wandb.html
python -m muwa.report.wandb_preview FOLDER --out PAGE

The page has what W&B's own pages have: the table of runs, a panel for each key that was logged, figures,
tables, summary and config; and the files that `wandb sync` sends. docs/wandb.md tells what is logged. The
command `wandb leet` of wandb 0.31 reads the logs: their format is wandb's own and changes with it.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from muwa.cli.parser import OneLineParser
from muwa.drafts import write_text
from muwa.errors import message_of
from muwa.report.figures import Figure, blank, hover
from muwa.report.svg import inline
from muwa.report.text import environment
from muwa.runtime import stopping

LOGS = ("wandb/offline-run-*", "*/wandb/offline-run-*")  # below the folder of a run, of a sweep
Points = tuple[Sequence[float], Sequence[float]]  # x, y
ROWS = 50  # of a table that are shown
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00")  # of runs, as muwa.report.svg knows them
FIRST = ("verdict", "objective", "names", "edit/layer", "edit/tower", "edit/relative_norm", "status")


@dataclass
class Logged:
    """A run in W&B. It may have several logs: those of its attempts, which W&B merges.

    Args:
        name: Its name in W&B, or its id if it has none.
        about: Group, job type, tags, notes, state.
        steps: Key or pattern of keys -> the key that is its x axis.
        hidden: Keys that W&B shows no panel of.
        points: Key -> (x, y) of each number that was logged.
        media: Key -> an image or a table, as a file.
        files: What is sent: path -> bytes.
    """

    name: str = ""
    about: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    media: dict[str, Path] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


def logs(folder: Path) -> list[Path]:
    """The offline logs of a run or of a sweep, in the order of their runs and their start."""
    found = [path for pattern in LOGS for path in sorted(folder.glob(pattern))]
    if not found:
        raise ValueError(f"{folder}: no {LOGS[0]} in it; want a run or a sweep with logger=[jsonl,wandb]")
    return found


def records(log: Path) -> list[dict[str, Any]]:
    """The records of a log, as wandb itself reads them."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb is not installed, and it alone reads its logs: pip install 'wandb>=0.31'")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{log}: wandb cannot read it: {done.stderr.strip().rpartition('Error: ')[2]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def read_runs(folder: Path) -> list[Logged]:
    """The runs of a folder. Attempts with the same id are one run."""
    runs: dict[str, Logged] = {}
    found = logs(folder)
    with ThreadPoolExecutor() as pool:  # each log is read by a process
        read = list(pool.map(records, found))
    for log, lines in zip(found, read, strict=True):
        run = runs.setdefault(log.name.rpartition("-")[2], Logged())
        for record in lines:
            add(run, record[record["type"]], record["type"], log)
        for path in sorted((log / "files").rglob("*")):
            if path.is_file():
                run.files[path.relative_to(log / "files").as_posix()] = path.stat().st_size
    return list(runs.values())


def add(run: Logged, record: Mapping[str, Any], kind: str, log: Path) -> None:
    """Add one record to a run."""
    if kind == "run":
        run.name = record.get("display_name") or run.name or record["run_id"]
        keys = {"run_group": "group", "job_type": "job type", "notes": "notes"}
        run.about |= {said: record[key] for key, said in keys.items() if key in record}
        run.about |= {"tags": ", ".join(record["tags"])} if record.get("tags") else {}
        run.about["state"] = "crashed"  # until it says more
    elif kind == "config":
        run.config |= record.get("update", {})
    elif kind == "summary":
        run.summary |= {key: value for key, value in record.get("update", {}).items() if key[0] != "_"}
        for key in record.get("remove", []):
            run.summary.pop(key, None)
    elif kind == "metric":
        key = record.get("glob_name") or record["name"]
        run.steps[key] = record.get("step_metric", "_step")
        run.hidden |= {key} if record.get("options", {}).get("hidden") else set()
    elif kind == "history":
        add_point(run, record["item"], log)
    elif kind == "exit":
        run.about["state"] = "failed" if record.get("exit_code") else "finished"


def add_point(run: Logged, item: Mapping[str, Any], log: Path) -> None:
    """Add the numbers, images and tables that were logged together."""
    for key, value in item.items():
        media = key.rpartition(".")[0]
        if f"{media}.path" in item:  # "figures/trace.path", "figures/trace.width"
            path = log / "files" / item[f"{media}.path"]
            if path.resolve().is_relative_to((log / "files").resolve()):
                run.media[media] = path
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and key[0] != "_" and key not in run.hidden:
            steps = next((x for one, x in run.steps.items() if fnmatch.fnmatchcase(key, one)), "_step")
            run.points.setdefault(key, []).append((item.get(steps, item["_step"]), value))


def panel(key: str, runs: Sequence[Logged]) -> Figure:
    """One key of all runs: bars if each logged it once, else lines over the steps."""
    having = [(number, run) for number, run in enumerate(runs) if key in run.points]
    bars = all(len(run.points[key]) == 1 for _, run in having)
    figure, axes = blank(3.4, 0.7 + 0.28 * len(having) if bars else 2.4)
    axis = axes[0, 0]
    for place, (number, run) in enumerate(having):
        x, y = zip(*run.points[key], strict=True)
        (_bar if bars else _line)(axis, place, run.name, (x, y), COLOURS[number % len(COLOURS)])
    if bars:
        axis.set_yticks([])
        axis.invert_yaxis()
        values = [run.points[key][0][1] for _, run in having]
        low, high = min(0.0, *values), max(0.0, *values)
        room = 0.25 * (high - low) or 0.5  # for the numbers
        axis.set_xlim(low - room * (low < 0), high + room * (high > 0 or low == 0))
        axis.xaxis.set_major_locator(MaxNLocator(4))
    return figure


def _bar(axis: Axes, place: int, name: str, points: Points, colour: str) -> None:
    """A bar with its value behind it."""
    value = points[1][0]
    (bar,) = axis.barh(place, value, color=colour)
    hover(bar, [f"{name}: {value:.4g}"])
    side, shift = ("left", 3) if value >= 0 else ("right", -3)
    place_of_text: dict[str, Any] = {
        "xy": (value, place),
        "xytext": (shift, 0),
        "textcoords": "offset points",
    }
    axis.annotate(f"{value:.4g}", ha=side, va="center", fontsize=8, color="#333333", **place_of_text)


def _line(axis: Axes, place: int, name: str, points: Points, colour: str) -> None:
    """A line with its points."""
    axis.plot(*points, color=colour, linewidth=1.2)
    texts = [f"{name}, {x:g}: {y:.4g}" for x, y in zip(*points, strict=True)]
    hover(axis.scatter(*points, color=colour, s=9), texts)


def panels(runs: Sequence[Logged]) -> dict[str, list[tuple[str, Markup]]]:
    """Section -> (key, chart) of each panel. As in W&B, the section is what stands before the first slash."""
    sections: dict[str, list[tuple[str, Markup]]] = {}
    for number, key in enumerate(sorted({key for run in runs for key in run.points})):
        values = [f"{run.name}: {run.points[key][-1][1]:.4g}" for run in runs if key in run.points]
        chart = inline(panel(key, runs), f"p{number}", f"{key}. {'; '.join(values)}", whole=False)
        sections.setdefault(key.partition("/")[0] if "/" in key else "charts", []).append((key, chart))
    return sections


def images(runs: Sequence[Logged]) -> dict[str, list[tuple[str, str]]]:
    """Key -> (run, data URI) of each image."""
    found: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        for key, path in run.media.items():
            if path.suffix == ".png":
                data = base64.b64encode(path.read_bytes()).decode()
                found.setdefault(key, []).append((run.name, f"data:image/png;base64,{data}"))
    return found


def tables(runs: Sequence[Logged]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Key -> (columns, rows) of all runs together, as W&B joins them."""
    found: dict[str, tuple[list[str], list[list[Any]]]] = {}
    for run in runs:
        for key, path in run.media.items():
            if path.name.endswith(".table.json"):
                table = json.loads(path.read_text())
                _, rows = found.setdefault(key, (["run", *table["columns"]], []))
                rows.extend([run.name, *row] for row in table["data"])
    return found


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(Dotted key, text) of nested values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", shown(value)


def side_by_side(values: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(Key, its text in each run): first the keys of `FIRST`, then those that differ, then the others."""
    sides = [dict(flat(one)) for one in values]
    keys = [*FIRST, *sorted({key for side in sides for key in side})]
    known = [key for key in dict.fromkeys(keys) if any(key in side for side in sides)]
    texts = {key: [side.get(key, "") for side in sides] for key in known}
    return sorted(texts.items(), key=lambda one: one[0] not in FIRST and len(set(one[1])) == 1)


def _numbers(run: Logged) -> dict[str, Any]:
    """The summary without what is said of each image and table ("figures/gains.size")."""
    return {key: value for key, value in run.summary.items() if key.rpartition(".")[0] not in run.media}


def shown(value: Any) -> str:
    """A value as a text: numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def page(title: str, runs: Sequence[Logged]) -> str:
    """The page of some runs."""
    template = environment().get_template("wandb.html")
    about = ("state", "group", "job type", "tags")
    return template.render(
        folder=title,
        runs=runs,
        about=about,
        sections=panels(runs),
        images=images(runs),
        tables=tables(runs),
        summary=side_by_side([_numbers(run) for run in runs]),
        config=side_by_side([run.config for run in runs]),
        shown=shown,
        most=ROWS,
        colours=COLOURS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: write the page and print where it is. Returns the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of a run or of a sweep")
    parser.add_argument("--out", type=Path, help="the page (FOLDER/wandb.html)")
    given = parser.parse_args(argv)
    out = given.out or given.folder / "wandb.html"
    try:
        write_text(out, page(given.folder.resolve().name, read_runs(given.folder)))
    except (ValueError, OSError) as error:
        print(f"muwa.report.wandb_preview: {message_of(error)}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    with stopping.one_line("muwa.report.wandb_preview", "No page was written: type the same command again."):
        sys.exit(main())

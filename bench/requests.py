"""Many requests on the miniature CLIP: several people forgotten at once, and one after the other.

    python -m bench.requests --at-once 1 2 5 10 20 50 --draws 3        # all names in one call
    python -m bench.requests --in-sequence 10                          # request by request
    python -m bench.requests --at-once 5 --ways joint slug --draws 1

People are drawn at random by number (draw 0, 1, ...). The people of a smaller number are the first of a
larger one, so gradients are shared. The people in `CHOOSING`, on whom defaults were chosen, are never drawn.
All accuracies are on held-out images. "Others" are the people that were not forgotten.

Gradients and searches are kept in --out/cache and rows in --out/requests.json: an interrupted run goes on
where it stopped. Delete the rows after a change of the code.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import muwa
from bench import entry
from bench.common import ROOT, machine, show
from bench.sequence import STRATEGIES, Request, TaskOf
from muwa.eval.clip.ranks import top_k
from muwa.miniature.population import people
from muwa.models.clip.model import Clip
from muwa.run import Run
from muwa.types.data import Task

CHOOSING = (
    "Delphi Ironfell",
    "Dagny Kestrelow",
    "Lumi Birkfeld",
    "Greta Abernorth",
    "Kester Calderan",
    "Brena Tarnhelme",
)
# Way -> (method, its settings that are not the defaults).
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "joint": ("slug_whitened", {}),
    "slug": ("slug", {}),
    "one_round": ("slug_whitened", {"rounds": 1}),
    "added": ("slug_whitened", {"jointly": False}),
    "several_layers": ("slug_layers", {}),
    "nullspace": ("nullspace", {}),
}


@dataclass(frozen=True)
class Row:
    """What the model forgot and lost after some requests.

    Attributes:
        way: A key of `WAYS` or of `STRATEGIES`.
        draw: The number of the draw.
        names: All names that were to be forgotten, in order.
        recognised: Name -> its held-out images whose name is still among the first five guesses.
        images: Number of held-out images of all these names.
        others, objects: Points of top-1 accuracy lost by the other people and by objects; above 0 is a loss.
        changes: Edited tensor -> |delta| / |theta|.
        seconds: CPU seconds of the last call; what an earlier row left in the cache is read back.
    """

    way: str
    draw: int
    names: tuple[str, ...]
    recognised: Mapping[str, int]
    images: int
    others: float
    objects: float
    changes: Mapping[str, float]
    seconds: float

    @property
    def forgotten(self) -> int:
        """Number of names without a recognised image."""
        return sum(count == 0 for count in self.recognised.values())

    @property
    def share(self) -> float:
        """Share of the images that are still recognised, in per cent."""
        return 100 * sum(self.recognised.values()) / self.images


class Rows:
    """The rows of all runs so far, in a JSON file that is written after every new row."""

    def __init__(self, path: Path):
        self._path = path
        self.each = [Row(**row) for row in json.loads(path.read_text())] if path.exists() else []

    def find(self, way: str, draw: int, names: Sequence[str]) -> Row | None:
        """The row of a way for these names."""
        key = way, draw, list(names)
        return next((row for row in self.each if (row.way, row.draw, list(row.names)) == key), None)

    def add(self, row: Row) -> None:
        """Add a row, print it, and write the file."""
        self.each.append(row)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps([asdict(one) for one in self.each], indent=1) + "\n")
        print(f"{row.way:18} draw {row.draw}  {'  '.join(cells([row]))}", flush=True)


def drawn(draw: int, count: int) -> tuple[str, ...]:
    """The first `count` people of a draw.

    Raises:
        ValueError: There are not so many.
    """
    names = [person.name for person in people() if person.name not in CHOOSING]
    if count > len(names):
        raise ValueError(f"{count} requests: there are {len(names)} people that may be drawn")
    return tuple(names[i] for i in np.random.default_rng(draw).permutation(len(names))[:count])


def recognised(model: Clip, task: Task, run: Run) -> dict[str, int]:
    """Name to forget -> its held-out images whose name is among the first five guesses."""
    images, features = task.eval.forget, model.observe(run)
    labels = torch.tensor(images.labels)
    hits = top_k(features.images(images), features.classes(images.classes), labels, 5)
    names = [images.classes.names[label] for label in images.labels]
    return {
        name: sum(bool(hit) for hit, other in zip(hits, names, strict=True) if other == name)
        for name in task.names
    }


def measured(original: Clip, edited: Clip, task: Task, run: Run) -> dict[str, Any]:
    """The fields of `Row` that follow from a model before and after its edits."""
    before, after = (muwa.evaluate(model, task, run, "retain,utility") for model in (original, edited))
    lost = {key: 100 * (before[key].value - after[key].value) for key in before}
    changes = {
        name: (edited.weights[name] - weight).norm().item() / weight.norm().item()
        for name, weight in original.weights.items()
        if not torch.equal(edited.weights[name], weight)
    }
    return {
        "names": task.names,
        "recognised": recognised(edited, task, run),
        "images": len(task.eval.forget),
        "others": lost["retain/top1"],
        "objects": lost["utility/top1"],
        "changes": changes,
    }


def at_once(model: Clip, task: Task, way: str, draw: int, run: Run) -> Row:
    """Forget all names of a task in one call."""
    method, settings = WAYS[way]
    started = time.process_time()
    edit = muwa.unlearn(model, task, run, method, **settings)
    seconds = time.process_time() - started
    return Row(way=way, draw=draw, seconds=seconds, **measured(model, model.edited(edit), task, run))


def in_sequence(
    model: Clip, names: Sequence[str], task_of: TaskOf, strategy: str, draw: int, rows: Rows, run: Run
) -> None:
    """Forget one name after the other; add one row after each request."""
    edited = model
    done = [rows.find(strategy, draw, names[: i + 1]) for i in range(len(names))]
    if all(done):
        return
    for i, row in enumerate(done):
        so_far = tuple(names[: i + 1])
        started = time.process_time()
        edited = STRATEGIES[strategy](Request(model, edited, so_far, task_of, run))
        seconds = time.process_time() - started
        if row is None:
            found = measured(model, edited, task_of(so_far), run)
            rows.add(Row(way=strategy, draw=draw, seconds=seconds, **found))


COLUMNS = ("forgotten", "images left", "others lost", "objects lost", "|d|/|w|", "CPU s", "tensors")


def cells(rows: Sequence[Row]) -> list[str]:
    """The cells of `COLUMNS`: means over rows with the same number of names, and ranges over draws."""
    count = len(rows[0].names)

    def points(values: list[float]) -> str:
        span = f" ({min(values):.1f}..{max(values):.1f})" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{span}"

    layers = dict.fromkeys(layer for row in rows for layer in row.changes)
    short = [layer.replace("transformer.resblocks.", "") for layer in layers]
    return [
        f"{np.mean([row.forgotten for row in rows]):g} of {count}",
        f"{np.mean([row.share for row in rows]):.1f} %",
        points([row.others for row in rows]),
        points([row.objects for row in rows]),
        f"{np.mean([max(row.changes.values(), default=0) for row in rows]):.2f}",
        f"{np.mean([row.seconds for row in rows]):.0f}",
        ", ".join(short) if len(short) <= 3 else f"{len(short)} tensors",
    ]


Tables = dict[str, tuple[list[str], list[list[str]]]]  # title -> (columns, rows)


def tables(rows: Sequence[Row]) -> Tables:
    """One table for all names at once, and one for each strategy of a sequence."""
    found: Tables = {}
    ways = [row for row in rows if row.way in WAYS]
    keys = sorted({(len(row.names), list(WAYS).index(row.way), row.way) for row in ways})
    lines = []
    for count, _, way in keys:
        some = [row for row in ways if (len(row.names), row.way) == (count, way)]
        lines.append([str(count), way, str(len(some)), *cells(some)])
    if lines:
        found["At once"] = ["names", "way", "draws", *COLUMNS], lines
    for strategy in STRATEGIES:
        for draw in sorted({row.draw for row in rows if row.way == strategy}):
            some = [row for row in rows if (row.way, row.draw) == (strategy, draw)]
            lines = [[f"{len(row.names)}. {row.names[-1]}", *cells([row])] for row in some]
            found[f"In sequence: {strategy}, draw {draw}"] = ["request", *COLUMNS], lines
    return found


def markdown(found: Tables) -> str:
    """The tables as Markdown."""
    parts = []
    for title, (columns, lines) in found.items():
        table = [columns, ["---"] + ["---:"] * (len(columns) - 1), *lines]
        parts += [
            f"### {title}\n",
            *("| " + " | ".join(line).replace("|d|/|w|", "size") + " |" for line in table),
            "",
        ]
    return "\n".join(parts)


def arguments() -> argparse.ArgumentParser:
    """The arguments of this bench."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--at-once", type=entry.count, nargs="*", default=[], help="numbers of names")
    parser.add_argument("--in-sequence", type=entry.count, default=0, help="number of requests")
    parser.add_argument("--draws", type=entry.count, default=1, help="how many draws of people")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--root", type=Path, default=ROOT, help="the miniature's data")
    parser.add_argument("--out", type=Path, default=Path("outputs/requests"))
    parser.add_argument("--device", type=entry.device, default="cpu", help="cpu | cuda")
    return parser


def write_tables(rows: Rows, out: Path) -> Tables:
    """Write all tables to `out/tables.md`."""
    found = tables(rows.each)
    (out / "tables.md").write_text(markdown(found))
    return found


def main() -> None:
    """Run the bench."""
    parser = arguments()
    args = parser.parse_args()
    if not args.at_once and not args.in_sequence:
        parser.error("want --at-once, --in-sequence or both")
    data, model = muwa.load_miniature(str(args.root)), muwa.load_clip(device=args.device)
    run = Run(store=muwa.Store(args.out / "cache"), progress=sys.stderr.isatty())
    rows = Rows(args.out / "requests.json")

    @cache
    def task_of(names: tuple[str, ...]) -> Task:
        return muwa.celeba(data, identity=list(names))

    for draw in range(args.draws):
        for count in args.at_once:
            for way in args.ways:
                names = drawn(draw, count)
                if not rows.find(way, draw, names):
                    rows.add(at_once(model, task_of(names), way, draw, run))
                    write_tables(rows, args.out)
    for draw in range(args.draws if args.in_sequence else 0):
        for strategy in args.strategies:
            in_sequence(model, drawn(draw, args.in_sequence), task_of, strategy, draw, rows, run)
            write_tables(rows, args.out)
    notes = [f"{machine(args.device)}; points lost on held-out images; CPU seconds of the last call."]
    for title, (columns, lines) in write_tables(rows, args.out).items():
        show(title, columns, lines, notes)


if __name__ == "__main__":
    entry.run("bench.requests", main)

"""A service that gets one request after another, by the commands of docs/requests.md; all is measured.

    python -m bench.service clip                     # ten people in a row, then the fourth is taken back
    python -m bench.service sd --requests 3 --take-back 2
    python -m bench.service vlm --requests 3 --take-back 2

Each request is a run of launch.py on the folder that the last one left, whose patch is then put on it. Each
state is compared with the unedited model by stages=[eval], and verified. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import muwa
from bench import entry
from bench.common import ROOT
from bench.requests import drawn, markdown

HERE = Path(__file__).parents[1]
ROUNDING = 1e-9  # 1 - 0.95 is slightly above 0.05
MINIATURE = Path(muwa.__file__).parent / "miniature"


@dataclass(frozen=True)
class Family:
    """How a family is launched and read.

    Args:
        setting: The setting of its weights.
        prefix: What stands before a folder in that setting.
        base: The folder of the unedited model.
        rates: What is measured: of the target, of others, of everything else.
        higher: Whether the first rate is higher where the target is forgotten.
        samples: Settings of how many samples the tables of docs/requests.md are measured on.
    """

    setting: str
    prefix: str
    base: Path
    rates: tuple[str, str, str]
    higher: bool = False
    samples: tuple[str, ...] = ()


FAMILIES = {
    "clip": Family("name", "local-dir:", MINIATURE / "clip", ("forget/top1", "retain/top1", "utility/top1")),
    "sd": Family(
        "path",
        "",
        MINIATURE / "sd",
        ("forget/ua", "retain/ira", "retain/cra"),
        higher=True,
        samples=("eval.canvas.kept_seeds=5", "eval.lookalike.kept_seeds=5"),
    ),
    "vlm": Family(
        "path",
        "",
        MINIATURE / "llava",
        ("forget/answered", "retain/answered", "utility/answered"),
        samples=("eval.answers.retain=200", "eval.answers.utility=200"),
    ),
}


@dataclass(frozen=True)
class Service:
    """The folders and settings of one family's requests.

    Args:
        names: The people, in the order of their requests.
    """

    family: str
    names: tuple[str, ...]
    out: Path
    root: Path
    device: str

    @property
    def about(self) -> Family:
        """How the family is launched."""
        return FAMILIES[self.family]

    def folder(self, state: str) -> Path:
        """The model in a state; "0" is the unedited one."""
        return self.about.base if state == "0" else self.out / f"model-{state}"

    def patch(self, number: int) -> Path:
        """The patch of a request."""
        return self.out / f"request-{number}" / "patch.safetensors"

    def launch(self, run: str, state: str, *overrides: str) -> dict[str, Any]:
        """The results of a run of launch.py on a state; read back if it is done."""
        folder = self.out / run
        if not (folder / "results.json").is_file():
            model = f"model.{self.about.setting}={self.about.prefix}{self.folder(state)}"
            fixed = [f"paths.outputs={self.out}", f"dataset.root={self.root}", f"hydra.run.dir={folder}"]
            fixed += [f"runtime.device={self.device}", "runtime.progress=false"]
            run_command("launch.py", f"model={self.family}", model, *fixed, *self.about.samples, *overrides)
        return json.loads((folder / "results.json").read_text())

    def meet(self, number: int) -> dict[str, Any]:
        """Meet a request: make its patch on the running state, and put it on."""
        name = self.names[number - 1].replace(" ", "_")
        found = self.launch(f"request-{number}", str(number - 1), f"task.identity={name}")
        if not self.folder(str(number)).is_dir():
            patched(
                "apply", self.patch(number), self.folder(str(number - 1)), "--out", self.folder(str(number))
            )
        return found

    def measure(self, state: str, on: tuple[int, ...], *overrides: str) -> dict[str, Any]:
        """Compare a state with the unedited model, and verify that it is the base with the patches `on`."""
        patched("verify", self.folder(state), "--base", self.about.base, *map(self.patch, on))
        base = f"base={{{self.about.setting}: '{self.about.prefix}{self.about.base}'}}"
        return self.launch(f"state-{state}", state, "stages=[eval]", base, *overrides)

    def take_back(self, number: int) -> dict[str, Any]:
        """Take one request off the last state; all names are measured."""
        last = len(self.names)
        state = f"{last}-without-{number}"
        others = tuple(n for n in range(1, last + 1) if n != number)
        if not self.folder(state).is_dir():
            options = ["--out", self.folder(state), "--others", *map(self.patch, others)]
            patched("remove", self.patch(number), self.folder(str(last)), *options)
        every = ",".join(name.replace(" ", "_") for name in self.names)
        return self.measure(state, others, f"task.identity=[{every}]")


def run_command(*words: object) -> None:
    """Run Python on `words` in the checkout; what it prints is not shown unless it fails."""
    line = [sys.executable, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(line, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def patched(*words: object) -> None:
    """Run `python -m muwa.patch`."""
    run_command("-m", "muwa.patch", *words)


def cells(title: str, found: dict[str, Any], about: Family, made: dict[str, Any] | None) -> list[str]:
    """A row of the table: a state, what is recognised, what was lost, and how its patch was made."""
    forget, retain, utility = about.rates
    before, after = found["metrics"]["before"], found["metrics"]["after"]
    rates = after[forget]["by_name"]
    known = {name: 1 - one["value"] if about.higher else one["value"] for name, one in rates.items()}
    back = [
        f"{name} {100 * rate:.0f} %"
        for name, rate in known.items()
        if rate > after[forget]["gone_at"] + ROUNDING
    ]
    mean = sum(known.values()) / len(known)
    lost = [100 * (before[key]["value"] - after[key]["value"]) for key in (retain, utility)]
    edit = (
        made["edit"]["layer"].replace("transformer.resblocks.", "") if made and made["edit"]["layer"] else ""
    )
    seconds = f"{made['cost']['seconds']:.0f}" if made else ""
    return [
        title,
        f"{len(known) - len(back)} of {len(known)}",
        f"{100 * mean:.1f} %" + (f" ({', '.join(back)})" if back else ""),
        *(f"{one:.2f}" for one in lost),
        edit,
        seconds,
    ]


COLUMNS = ["state", "forgotten", "still recognised", "others lost", "rest lost", "layer", "seconds"]


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--requests", type=entry.count, default=10)
    parser.add_argument("--take-back", type=int, default=4, help="which request; 0 takes none back")
    parser.add_argument("--draw", type=int, default=0, help="which draw of people (bench.requests)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the miniature's data")
    parser.add_argument("--out", type=Path, default=Path("outputs/service"))
    parser.add_argument("--device", type=entry.device, default="cpu", help="cpu | cuda")
    args = parser.parse_args()
    if not 0 <= args.take_back <= args.requests:
        parser.error(f"--take-back {args.take_back}: want a request of 1 to {args.requests}, or 0 for none")
    out = (args.out / args.family).resolve()
    service = Service(args.family, drawn(args.draw, args.requests), out, args.root.resolve(), args.device)
    rows: list[list[str]] = []
    for number in range(1, args.requests + 1):
        started = time.perf_counter()
        made = service.meet(number)
        found = service.measure(str(number), tuple(range(1, number + 1)))
        add(rows, cells(f"{number}. {service.names[number - 1]}", found, service.about, made), out, started)
    if args.take_back:
        started = time.perf_counter()
        found = service.take_back(args.take_back)
        title = f"without {args.take_back}. {service.names[args.take_back - 1]}"
        add(rows, cells(title, found, service.about, None), out, started)


def add(rows: list[list[str]], row: list[str], out: Path, started: float) -> None:
    """Add a row, print it, and write the table."""
    rows.append(row)
    print("  ".join(row), f"[{time.perf_counter() - started:.0f} s]", flush=True)
    (out / "table.md").write_text(markdown({"Requests in a row": (COLUMNS, rows)}))


if __name__ == "__main__":
    entry.run("bench.service", main)

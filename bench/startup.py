"""Time and peak memory of a command before it answers or computes, and which of its imports take long.

    python -m bench.startup                            # two minutes
    python -m bench.startup --old CHECKOUT             # beside another checkout, taken in turns
    python -m bench.startup --tree 0.1                 # the imports of each command that take over 0.1 s

Each figure is the median of `--rounds` processes. Linux counts the memory of this process (16 MB) as the
least that one of them takes. "Cached run" is the default run, all of it from the cache.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import entry

HERE = Path(__file__).parent.parent
LAUNCH = {
    "--help": "--help",
    "--cfg job": "--cfg job",
    "a misspelt key": "sead=1",
    "an unknown person": "task.identity=Nobody",
    "a missing folder": "dataset.celeba=nowhere",
    "cached run": "runtime.progress=false",
}
IMPORTS = {"import hydra": "import hydra", "import muwa": "import muwa", "import torch": "import torch"}


def command(what: str, out: Path) -> list[str]:
    """The arguments of Python for one row."""
    if what in IMPORTS:
        return ["-c", IMPORTS[what]]
    return ["launch.py", *LAUNCH[what].split(), f"paths.outputs={out}"]


class Taken(NamedTuple):
    """What one process took: seconds, and its peak memory in MB."""

    seconds: float
    peak: float


def taken(what: str, checkout: Path, out: Path) -> Taken:
    """What the process of one row takes."""
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(checkout)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command(what, out)],
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return Taken(time.perf_counter() - started, usage.ru_maxrss / 1024)


def tree(what: str, out: Path, least: float) -> str:
    """The imports of one command that take at least `least` seconds, with what they import in turn."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command(what, out)],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = re.findall(r"import time: *\d+ \| *(\d+) \| ( *)(\S+)", done.stderr)
    kept = [
        (int(time_taken) / 1e6, spaces, name)
        for time_taken, spaces, name in rows
        if int(time_taken) / 1e6 >= least
    ]
    return (
        "\n".join(f"    {spaces}{name} {took:.2f} s" for took, spaces, name in reversed(kept)) or "    none"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=entry.checkout, help="another checkout")
    parser.add_argument("--rounds", type=entry.count, default=3)
    parser.add_argument("--tree", type=float, help="print imports that take so many seconds instead")
    args = parser.parse_args(argv)
    checkouts = {"here": HERE, **({"old": args.old.resolve()} if args.old else {})}
    with tempfile.TemporaryDirectory() as scratch:
        outs = {name: Path(scratch) / name for name in checkouts}
        if args.tree:
            for what in ("--help", "an unknown person", "cached run", "import muwa"):
                print(f"{what}\n{tree(what, outs['here'], args.tree)}")
            return
        for name, checkout in checkouts.items():
            taken("cached run", checkout, outs[name])  # fills the cache, and Python's compiled files
        found: dict[tuple[str, str], list[Taken]] = {}
        for _ in range(args.rounds):
            for what in (*LAUNCH, *IMPORTS):
                for name, checkout in checkouts.items():
                    found.setdefault((what, name), []).append(taken(what, checkout, outs[name]))
    from bench.common import machine, show

    def medians(what: str) -> list[str]:
        each = [found[what, name] for name in checkouts]
        seconds = [f"{statistics.median(one.seconds for one in some):.2f}" for some in each]
        return seconds + [f"{statistics.median(one.peak for one in some):.0f}" for some in each]

    rows = [[what, *medians(what)] for what in (*LAUNCH, *IMPORTS)]
    columns = [f"{name}, {unit}" for unit in ("s", "MB") for name in checkouts]
    show("Until the command ends", ["command", *columns], rows, [machine("cpu")])


if __name__ == "__main__":
    entry.run("bench.startup", main)

"""Does a refactoring change results? Runs the same commands in two checkouts and compares their results.json.

    python -m bench.unchanged record OLD_CHECKOUT --out old      # about 20 minutes on one core
    python -m bench.unchanged record . --out new
    python -m bench.unchanged compare old new             # exit code 1 if a layer, step or metric differs

`record` runs the commands of `COMMANDS` with the checkout's `launch.py`, on one thread, with a new cache.
`compare` compares `edit`, `metrics` and `trace` of each results.json: names must be equal, and numbers equal
to 1e-6 (of the larger one, or of 1 if both are below). Fields that only the second side has are allowed, as
results.json may gain some.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import entry

COMMANDS = {
    "default": "",
    "object": "task=object task.object=red_star",
    "two_names": "task.identity=[Lior_Garrowby,Imre_Marchetal]",
    "slug_subspace": "method=slug_subspace",
    "nullspace": "method=nullspace",
    "ssd": "method=ssd",
    "ga": "method=ga learning_rate=1e-4",
    "ten_identities": "-m experiment=ten_identities task.identity=Sabra_Thistlewayn,Lior_Garrowby",
    "sd_identity": "model=sd",
    "sd_style": "model=sd task=style task.concept=neon",
    "sd_uce": "model=sd method=uce",
    "vlm_clip": "model=vlm",
    "vlm_answer": "model=vlm method.gradient=answer",
}
PARTS = ("edit", "metrics", "trace")
TOLERANCE = 1e-6


def record(checkout: Path, out: Path, only: list[str]) -> None:
    """Run the commands in `checkout`; write `PARTS` of each results.json to `out`/<command>[-<run>].json."""
    out.mkdir(parents=True, exist_ok=True)
    work = out / "runs"
    for name, words in COMMANDS.items():
        if only and name not in only:
            continue
        folder = work / name
        shutil.rmtree(folder, ignore_errors=True)
        fixed = [f"paths.outputs={work.resolve()}", "runtime.threads=1", "runtime.progress=false"]
        where = "hydra.sweep.dir" if words.startswith("-m") else "hydra.run.dir"
        command = [sys.executable, "launch.py", *shlex.split(words), *fixed, f"{where}={folder.resolve()}"]
        started = time.perf_counter()
        subprocess.run(
            command,
            cwd=checkout,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        found = sorted(folder.rglob("results.json"))
        for path in found:
            run = "" if path.parent == folder else f"-{path.parent.name}"
            kept = {part: json.loads(path.read_text())[part] for part in PARTS}
            (out / f"{name}{run}.json").write_text(json.dumps(kept, indent=1) + "\n")
        print(f"{name:16} {time.perf_counter() - started:7.1f} s, {len(found)} results", flush=True)


def compare(old: Path, new: Path) -> int:
    """Print all differences between two recorded folders and return how many there are.

    Raises:
        ValueError: A folder holds nothing that was recorded.
    """
    for folder in (old, new):
        if not any(folder.glob("*.json")):
            raise ValueError(f"{folder}: nothing recorded in it; want a folder that `record` wrote")
    count = 0
    for path in sorted(old.glob("*.json")):
        other = new / path.name
        if not other.is_file():
            print(f"{path.stem}: not recorded in {new}")
            count += 1
            continue
        found = list(differences(json.loads(path.read_text()), json.loads(other.read_text()), path.stem))
        count += len(found)
        print("\n".join(found) if found else f"{path.stem}: the same")
    return count


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """A line for each value of `old` that `new` lacks or that differs; new values do not count."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            if key not in new:
                yield f"{where}.{key}: gone"
            elif key != "reads":  # a sentence for people
                yield from differences(value, new[key], f"{where}.{key}")
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where}: {len(old)} entries before, {len(new)} after"
        for i, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, other, f"{where}[{i}]")
    elif isinstance(old, int | float) and isinstance(new, int | float):
        if abs(old - new) > TOLERANCE * max(1.0, abs(old), abs(new)):
            yield f"{where}: {old} before, {new} after"
    elif old != new:
        yield f"{where}: {old!r} before, {new!r} after"


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("checkout", type=entry.checkout)
    recording.add_argument("--out", type=Path, required=True)
    recording.add_argument("--only", nargs="*", default=[], choices=list(COMMANDS))
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    args = parser.parse_args()
    if args.command == "record":
        record(args.checkout, args.out, args.only)
        return 0
    return min(1, compare(args.old, args.new))


if __name__ == "__main__":
    entry.run("bench.unchanged", main)

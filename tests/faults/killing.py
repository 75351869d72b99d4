"""Kill a command at each of its write points, type it again, and compare with an undisturbed one.

    python tests/faults/killing.py SPEC.json       # prints one JSON line: {"kills": ..., "faults": [...]}

A write point is a call of `os.replace`, `os.rename` or `os.fsync`. The process sends itself SIGKILL just before the
n-th, for every n: this gives every state of the disk between two of them. The heavy imports are made once; each try
is a fork.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from muwa.cache.entries import read_entry
from muwa.fingerprint import fingerprint

WRITES = ("replace", "rename", "fsync")
TIMES = ("seconds", "cache", "cost", "peak_memory_bytes", "provenance", "time")


def main(spec: Path) -> None:
    """Read what to run from a JSON file.

    `command` is a list of words, with {out} for the folder that it writes; its first word is a script or a module.
    `imports` are modules to import before the forks. `before` is a list of commands to run once, without kills.
    `every` takes each n-th write point only, from `first` on.
    """
    given = json.loads(spec.read_text())
    for name in given["imports"]:
        importlib.import_module(name)
    base = spec.parent
    whole, killed = base / "whole", base / "killed"
    (base / "before").mkdir()
    for command in given.get("before", []):
        assert finished(lambda words=command: run(words, base / "before")) == 0, command
    whole.mkdir()
    counted = base / "count"
    assert finished(lambda: counting(given["command"], whole, counted)) == 0, given["command"]
    points, wanted, faults, kills = int(counted.read_text()), outcome(whole), [], 0
    for n in range(given["first"], points + 1, given["every"]):
        shutil.rmtree(killed, ignore_errors=True)
        killed.mkdir()
        if finished(lambda n=n: run(given["command"], killed, n)) != -signal.SIGKILL:
            faults.append(f"{n}: it was not killed")
            continue
        kills += 1
        faults += [f"{n}: {fault}" for fault in broken(killed)]
        if code := finished(lambda: run(given["command"], killed)):
            faults.append(f"{n}: the same command ended with {code}")
        elif (got := outcome(killed)) != wanted:
            faults.append(
                f"{n}: differs in {[key for key in {*wanted, *got} if wanted.get(key) != got.get(key)]}"
            )
        faults += [f"{n}: afterwards {fault}" for fault in broken(killed)]
        print(f"{n} of {points}: {faults or 'as it should be'}", file=sys.stderr, flush=True)
    print(json.dumps({"points": points, "kills": kills, "faults": faults}))


def finished(work: Callable[[], None]) -> int:
    """The exit code of `work` in a fork; a negative one is the signal that ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def run(command: list[str], out: Path, kill: int = 0) -> None:
    """Run a command as `python` would, with SIGKILL before its write point `kill`."""
    program, *words = [word.format(out=out, base=out.parent) for word in command]
    os.chdir(out)
    with (out.parent / "output.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with patched(kill):
        sys.argv = [program, *words]
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)


def counting(command: list[str], out: Path, to: Path) -> None:
    """Run a command undisturbed, and write how many write points it has."""
    with contextlib.suppress(SystemExit):
        run(command, out)
    to.write_text(str(CALLS[0]))


CALLS = [0]


@contextlib.contextmanager
def patched(kill: int) -> Iterator[None]:
    """Count the calls of `WRITES`, and end this process just before the call `kill`."""

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **keywords: Any) -> Any:
            CALLS[0] += 1
            if CALLS[0] == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keywords)

        return instead

    for name in WRITES:
        setattr(os, name, counted(getattr(os, name)))
    yield


def outcome(folder: Path) -> dict[str, Any]:
    """What the command made: files by their path, in a form that does not depend on times and places.

    Locks, logs, drafts and what only says how the command went are left out.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or ".draft" in name or path.suffix in (".lock", ".log") or ".hydra" in name:
            continue
        if path.name in (
            "key.json",
            "metrics.jsonl",
            "report.html",
            "sweep.html",
            "multirun.yaml",
            ".images.parquet",
        ):
            found[name] = "there"
        elif path.name == "muwa_patch.json":  # without the time of each patch
            found[name] = re.sub(r'"when": "[^"]*"', "", path.read_text())
        elif path.name == "results.json":
            found[name] = {
                key: value for key, value in json.loads(path.read_text()).items() if key not in TIMES
            }
        elif path.suffix == ".csv":
            rows = csv.DictReader(path.read_text().splitlines())
            found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        elif (
            path.name == "value.json" and "cache" in name
        ):  # the value: equal tensors may be stored once or twice
            found[name] = fingerprint(read_entry(path.parent)[1])
        elif path.name == "value.safetensors" and "cache" in name:
            found[name] = "there"
        elif path.suffix == ".safetensors" and "cache" in name:  # the order of its metadata is random
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key).numpy().tobytes() for key in file.keys()}  # noqa: SIM118
                found[name] = (tensors, file.metadata())
        elif path.suffix == ".json" and "cache" in name:
            found[name] = json.loads(path.read_text())
        else:
            found[name] = path.read_bytes()
    return found


def broken(folder: Path) -> list[str]:
    """The files that a reader would take for whole, and are not. Drafts and logs are no such files."""
    faults = []
    for path in folder.rglob("*"):
        if not path.is_file() or ".draft" in path.relative_to(folder).as_posix():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>"), "no end"
        except Exception as error:
            faults.append(f"{path.relative_to(folder)}: {error}")
    return faults


if __name__ == "__main__":
    main(Path(sys.argv[1]))

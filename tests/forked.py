"""Programs in forks of one process that has made the imports, so that each costs its own work and no start-up.

For tests of what a run does. Tests of how a process starts, and of what it imports, start a Python of their own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCH = str(ROOT / "launch.py")
IMPORTS = [
    "muwa.unlearning", "muwa.cli.launch", "muwa.pipeline", "muwa.models.clip.open_clip", "muwa.layer_search.choice",
    "muwa.methods.slug_whitened", "muwa.report.page", "muwa.report.sweep", "webdataset",
]  # fmt: skip
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(IMPORTS)


class Program:
    """A Python program that runs; its output goes to files."""

    def __init__(self, words: Sequence[str], cwd: Path, environment: Mapping[str, str]):
        self._output = Path(tempfile.mkdtemp(prefix="forked-"))
        whole = {**os.environ, **environment}
        self.process = _SERVER.Process(target=_program, args=(list(words), cwd, whole, self._output))
        self.process.start()

    def poll(self) -> int | None:
        """The exit code; a negative one is the signal that ended it; None while it runs."""
        return self.process.exitcode

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; returns (stdout, stderr)."""
        self.process.join()
        stdout, stderr = ((self._output / name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self._output)
        return stdout, stderr


def start(*words: str, cwd: Path = ROOT, **environment: str) -> Program:
    """Start `python WORDS`: a file and its arguments."""
    return Program(words, cwd, environment)


def run(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end."""
    program = start(*words, cwd=cwd, **environment)
    said = program.communicate()
    return subprocess.CompletedProcess(words, program.poll() or 0, *said)


def _program(words: list[str], cwd: Path, environment: Mapping[str, str], output: Path) -> None:
    """In the fork: become that program."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        with (output / name).open("w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[:0] = [str(Path(words[0]).parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    runpy.run_path(words[0], run_name="__main__")

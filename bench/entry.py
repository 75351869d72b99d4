"""How every bench begins and ends: arguments are checked first, and a mistake ends it with one line.

It imports no torch: some benches measure processes that do without it.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from muwa.errors import message_of
from muwa.runtime import stopping


def run(program: str, main: Callable[[], int | None]) -> None:
    """Run a bench and exit.

    Bad input, a command of the bench that fails, Ctrl-C and SIGTERM end it with one line on stderr.

    Args:
        program: The first word of the line: "bench.same".
        main: Reads the command line and does everything. Returns the exit code; None is 0.
    """
    with stopping.one_line(program, "What it had printed or written stays: type the same command again."):
        try:
            code = main()
        except subprocess.CalledProcessError as error:
            last = (error.stderr or "").strip().rpartition("\n")[2]
            words = shlex.join(map(str, error.cmd))
            print(f"{program}: exit code {error.returncode} of: {words}  {last}".rstrip(), file=sys.stderr)
            code = 2
        except (ValueError, OSError) as error:
            print(f"{program}: {message_of(error)}", file=sys.stderr)
            code = 2
    sys.exit(code)


def count(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, want a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"got {text}, want a number above 0")
    return number


def device(text: str) -> str:
    """An argument that is a device that torch can use here."""
    if text != "cpu":
        from muwa.runtime.devices import check_device  # imports torch

        try:
            check_device(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("runtime.device=")) from error
    return text


def checkout(text: str) -> Path:
    """An argument that is the folder of a checkout of muwa."""
    if not (Path(text) / "launch.py").is_file():
        raise argparse.ArgumentTypeError(f"{text}: no launch.py in it, want a checkout of muwa")
    return Path(text)

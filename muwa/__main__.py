"""The command `muwa`, which is also `python -m muwa`: an experiment, or one of its tools.

muwa task.identity=Edda_Everlane     # an experiment: python launch.py task.identity=Edda_Everlane
muwa patch show PATCH                # a tool: python -m muwa.patch show PATCH
muwa --help
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Command line. Returns the exit code of a tool; an experiment ends by itself."""
    from muwa.runtime import stopping

    stopping.leave_at_once("muwa")  # during the imports below, which take a second
    try:
        return _main()
    except BrokenPipeError:  # the reader of a pipe has enough, as in `muwa --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main() -> int:
    from muwa.cli.tools import TOOLS, run_tool
    from muwa.runtime import stopping

    if len(sys.argv) > 1 and (name := sys.argv[1]) in TOOLS:
        with stopping.one_line(f"muwa {name}", "Nothing is left half-written: type the same command again."):
            return run_tool(name)
    if "--version" in sys.argv[1:]:
        print(versions())
        return 0
    from muwa.cli import launch  # imports Hydra, which the tools do without

    with stopping.one_line("muwa", "Nothing was computed."):
        launch.main()
    return 0


def versions() -> str:
    """The versions of muwa, of Hydra, which reads its command line, and of Python."""
    import platform
    from importlib.metadata import version

    return f"muwa {version('muwa')} (Hydra {version('hydra-core')}, Python {platform.python_version()})"


if __name__ == "__main__":
    sys.exit(main())

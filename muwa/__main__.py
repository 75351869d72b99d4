"""The command `muwa`, which is also `python -m muwa`: an experiment, or one of its tools.

muwa task.identity=Edda_Everlane     # an experiment: python launch.py task.identity=Edda_Everlane
muwa patch show PATCH                # a tool: python -m muwa.patch show PATCH
muwa --help
"""

from __future__ import annotations

import sys


def main() -> int:
    """Command line. Returns the exit code of a tool; an experiment ends by itself."""
    from muwa.cli.tools import TOOLS, run_tool

    if len(sys.argv) > 1 and sys.argv[1] in TOOLS:
        return run_tool(sys.argv[1])
    from muwa.cli import launch  # imports Hydra, which the tools do without

    launch.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())

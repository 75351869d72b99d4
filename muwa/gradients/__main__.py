"""Write the gradients of a finished run to a file that another run reads.

python -m muwa.gradients export RUN FILE       # another run reads it: gradients=FILE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from muwa.cli.parser import OneLineParser
from muwa.errors import message_of
from muwa.runtime import stopping, threads


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `export RUN FILE` writes the gradients of a run to a file. Returns the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write the gradients of a finished run to one file")
    export.add_argument("run", type=Path, help="the folder of a run (with results.json)")
    export.add_argument("file", type=Path)
    export.add_argument("--concept", help="which name, when the run forgot several")
    trust = "a package beside muwa whose classes and functions the run's config may name"
    export.add_argument("--trust", metavar="PACKAGE", action="append", default=[], help=trust)
    export.add_argument("--trust-commands", action="store_true", help="let the run's config run commands")
    args = parser.parse_args(argv)
    threads.wait_briefly()
    from muwa.gradients.export import from_run  # imports torch
    from muwa.gradients.files import write_gradients

    try:
        gradients = from_run(args.run, args.concept, trusted=args.trust, commands=args.trust_commands)
        write_gradients(args.file, gradients)
    except (ValueError, OSError) as error:
        print(f"muwa.gradients: {message_of(error)}", file=sys.stderr)
        return 2
    print(f"{args.file}: {args.file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    said = "No file was written; finished gradients are kept in the cache: type the same command again."
    with stopping.one_line("muwa.gradients", said):
        sys.exit(main())

"""Look into a cache.

python -m muwa.cache ls outputs/cache                 # entries, size, age
python -m muwa.cache why KEY [KEY2] --root ROOT       # the parts of a key; of two: which differ
python -m muwa.cache clear ROOT [--stage gradients/forget]
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muwa.cli.parser import OneLineParser
from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.cache")  # during the imports below, which take a moment

from filelock import FileLock, Timeout

from muwa.cache.mark import checked
from muwa.drafts import remove
from muwa.errors import message_of
from muwa.json_files import read_json

_WRITTEN = re.compile(r"[0-9a-f]{64}(\..*)?")  # an entry, its lock, its drafts


def _entries(root: Path) -> list[Path]:
    """The folders of all complete entries under `root`."""
    return sorted(path.parent for path in root.rglob("key.json") if ".draft" not in path.parent.name)


def _find(root: Path, key: str) -> dict[str, Any]:
    """The parts of the one key under `root` that begins with `key`."""
    matches = [folder for folder in _entries(root) if folder.name.startswith(key)]
    if len(matches) != 1:
        raise ValueError(f"{key}: {len(matches)} entries under {root} begin with it, want one")
    parts = read_json(matches[0] / "key.json", dict, "the key of a cache entry").get("parts")
    if not isinstance(parts, dict):
        raise ValueError(f"{matches[0] / 'key.json'}: no parts in it, want the key of a cache entry")
    return {name: str(value) for name, value in parts.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: look into a cache. Returns the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("ls", "clear"):
        command = commands.add_parser(name)
        command.add_argument("root", type=Path)
        command.add_argument("--stage", default="")
    why = commands.add_parser("why")
    why.add_argument("keys", nargs="+", metavar="KEY")
    why.add_argument("--root", type=Path, default=Path("outputs/cache"))
    args = parser.parse_args(argv)
    actions = {"ls": _list, "clear": _clear, "why": _explain}
    try:
        actions[args.command](args)
    except (ValueError, OSError) as error:
        print(f"muwa.cache: {message_of(error)}", file=sys.stderr)
        return 2
    return 0


def _explain(args: argparse.Namespace) -> None:
    """Print the parts of one key, or of two beside each other."""
    parts = [_find(args.root, key) for key in args.keys[:2]]
    for name in sorted({name for part in parts for name in part}):
        values = [part.get(name, "absent") for part in parts]
        mark = "  " if len(set(values)) == 1 else "* "
        print(mark + name.ljust(24), "  ".join(value[:40] for value in dict.fromkeys(values)))


def _list(args: argparse.Namespace) -> None:
    """Print a line for each entry: its key, stage, size and age."""
    for folder in _entries(checked(args.root)):
        stage = folder.parent.relative_to(args.root).as_posix()
        if stage.startswith(args.stage):
            size = sum(path.stat().st_size for path in folder.iterdir())
            hours = (time.time() - (folder / "key.json").stat().st_mtime) / 3600
            print(f"{folder.name[:16]}  {stage:<20} {size / 1e6:9.2f} MB  {hours:7.1f} h")


def _clear(args: argparse.Namespace) -> None:
    """Remove entries, unfinished state, drafts and locks. Entries that a process holds are left.

    Only what the cache writes is removed: `<stage>/<key>`, and what has the same name with an ending.
    """
    root, in_use = checked(args.root), 0
    written = {path.parent / path.name[:64] for path in root.rglob("*") if _WRITTEN.fullmatch(path.name)}
    for folder in sorted(written):
        if not folder.parent.relative_to(root).as_posix().startswith(args.stage):
            continue
        try:
            with FileLock(f"{folder}.lock", blocking=False):
                for path in folder.parent.glob(f"{folder.name}*"):
                    remove(path)
        except Timeout:
            in_use += 1
    if in_use:
        print(f"{in_use} entries are in use and were left", file=sys.stderr)


if __name__ == "__main__":
    with stopping.one_line(
        "muwa.cache", "`clear` removes one entry after another; those that are left are whole."
    ):
        sys.exit(main())

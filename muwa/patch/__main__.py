"""Put patches on a model, take one off, list and verify them, join several, or show one.

python -m muwa.patch apply PATCH BASE --out DIR        # BASE: a checkpoint, or the folder of a model
python -m muwa.patch add PATCH EDITED --out DIR        # on top of the patches that are on it
python -m muwa.patch remove PATCH EDITED --out DIR [--others PATCH ...]   # the others stay, bit for bit
python -m muwa.patch list EDITED                       # which patches it carries
python -m muwa.patch verify EDITED --base BASE PATCH ...   # is it base + these patches, bit for bit?
python -m muwa.patch add PATCH PATCH ... --out FILE    # several as one
python -m muwa.patch show PATCH
python -m muwa.patch push PATCH ORG/NAME               # to the Hugging Face Hub, with a model card
python -m muwa.patch pull ORG/NAME --out FILE
python -m muwa.patch lora PATCH --rank R --out FILE    # a LoRA that comes near the patch
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muwa.cli.parser import OneLineParser
from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.patch")  # during the imports below, which take seconds

from rich.console import Console
from rich.table import Table

from muwa.errors import message_of
from muwa.patch.apply import Patch, read_patch, save_patch
from muwa.patch.change import joined, put_on, take_off
from muwa.patch.earlier import absent, still_lacking
from muwa.patch.ledger import Ledger, checked_ledger, is_patch, read_ledger
from muwa.patch.lora import save_lora
from muwa.patch.verify import verify

WIDE = 250  # columns in a pipe: no name is cut


def _next(args: argparse.Namespace, written: Sequence[str]) -> list[str]:
    """The commands that follow `apply`: check what was written, and take the patch off again."""
    program = _parser().prog
    edited = args.out / written[0] if args.base.is_file() and written else args.out
    earlier = read_ledger(args.base).requests
    places = [f"PATCH{number}" for number in range(1, len(earlier) + 1)]
    base = "UNEDITED" if earlier else _word(args.base)
    patches = " ".join([*places, _word(args.patch)])
    known = [f"{place}: {one.title}" for place, one in zip(places, earlier, strict=True)]
    return [
        f"  check it: {program} verify {_word(edited)} --base {base} {patches}",
        *([f"            UNEDITED: the model without patches; {'; '.join(known)}"] if known else []),
        *([f"            or its record alone: {program} list {_word(edited)}"] if known else []),
        f"  undo it:  {program} remove {_word(args.patch)} {_word(edited)} --out DIR",
    ]


def _word(path: Path) -> str:
    return shlex.quote(str(path))


def _show(path: Path, patch: Patch) -> None:
    """Print the content of a patch and how its edit was found."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    title = f"{path}, {path.stat().st_size / 1e6:.2f} MB"
    table = Table(title=title)
    for heading in ("name", "tower", "layer", "step", "relative norm"):
        table.add_column(heading, overflow="fold")
    for move in patch.moves:
        table.add_row(move.concept, move.tower, move.layer, f"{move.step:.6g}", f"{move.relative_norm:.4f}")
    console.print(table)
    for name, delta in patch.deltas.items():
        console.print(f"{name}  {tuple(delta.shape)}", highlight=False)
    console.print(f"base {patch.base_fingerprint}", highlight=False)
    console.print_json(json.dumps(patch.provenance))


def _list(place: Path) -> None:
    """Print the requests that weights carry, after the record was checked."""
    if not place.exists():
        raise FileNotFoundError(f"{place}: no such file or folder")
    if is_patch(place):
        raise ValueError(
            f"{place}: a patch, want a model that carries patches; show PATCH tells what it holds"
        )
    ledger = checked_ledger(place)
    if not ledger.requests:
        print(f"{place}: carries no patch that a record tells of")
        return
    checked = (
        "its record fits the weights"
        if ledger.weights
        else "its record is of an earlier version and cannot be checked"
    )
    count = len(ledger.requests)
    print(f"{place}: {count} {'patch' if count == 1 else 'patches'}; {checked}")
    for number, one in enumerate(ledger.requests, 1):
        print(f"{number:3}  {', '.join(one.names) or '(no names)'}")
        made_on = _made_on(ledger, number - 1)
        facts = [one.task, one.method.rpartition(".")[2], ", ".join(one.layers), one.when, made_on]
        print(f"     {' · '.join(fact for fact in facts if fact)}")
        print(f"     sha256 {one.sha256}")
    if result := ledger.rows[-1].get("result"):
        print(f"     fingerprint of the result, base of the next request: {result}")
    for row in ledger.removed:
        print(f"     taken off {row['when']}: sha256 {row['sha256']}")


def _made_on(ledger: Ledger, number: int) -> str:
    """On top of how many patches one of the record was made, and which of them are not on the weights."""
    one, on = ledger.requests[number], {other.sha256 for other in ledger.requests}
    if not one.made_on:
        return "made on the original"
    said = f"made on top of {len(one.made_on)}"
    if not (missing := absent(one, on)):
        return said
    lacking = still_lacking(ledger.rows, number)
    sure = lacking is None or lacking.checked
    count = f"{len(missing)} {'is' if len(missing) == 1 else 'are'}"
    where = "not on these weights" if sure else "not known to be on these weights, whose base had no record"
    return f"{said}, of which {count} {where}: {', '.join(sha[:12] for sha in missing)}"


def _verify(args: argparse.Namespace) -> int:
    """Print whether a folder is the base with the patches. Returns the exit code: 0 or 1."""
    base, *more = args.base
    paths = [*args.patches, *more]
    verdict = verify(args.folder, base, paths)
    for line in verdict.notes:
        print(f"  {line}")
    for line in verdict.differs:
        print(f"  DIFFERS: {line}")
    count = f"{len(paths)} {'patch' if len(paths) == 1 else 'patches'}"
    what = f"{base} + {count}, bit for bit ({verdict.tensors} tensors)"
    print(f"{args.folder}: is {'not ' if verdict.differs else ''}{what}")
    return 1 if verdict.differs else 0


def _add(args: argparse.Namespace) -> None:
    """Join patches into a file; or, if the last of them is a model, put them on it."""
    *first, last = args.patches
    if (last.is_file() and is_patch(last)) or not last.exists():
        save_patch(args.out, joined(args.patches))
        return
    if not first:
        raise ValueError(f"{last}: want a patch before the model: add PATCH MODEL --out DIR")
    done = put_on(first, last, args.out, keep=args.keep_unedited, add=True)
    print("\n".join(done.lines(args.out, remove=False)))


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="muwa patch" if sys.argv[0].startswith("muwa") else "python -m muwa.patch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, metavar in (("apply", "base"), ("remove", "edited")):
        command = commands.add_parser(name)
        command.add_argument("patch", type=Path)
        command.add_argument(
            "base",
            metavar=metavar,
            type=Path,
            help="a checkpoint file; an open_clip, Hugging Face or diffusers folder",
        )
        command.add_argument("--out", type=Path, required=True, help="a new folder")
        _keep_unedited(command)
        if name == "remove":
            command.add_argument(
                "--others", type=Path, nargs="+", default=[], help="the patches that stay on the same tensors"
            )
    add = commands.add_parser("add")
    add.add_argument("patches", type=Path, nargs="+", help="patches, to join; or patches, then a model")
    add.add_argument("--out", type=Path, required=True, help="the joined patch file; or a new folder")
    _keep_unedited(add)
    commands.add_parser("list").add_argument("place", metavar="edited", type=Path)
    check = commands.add_parser("verify", usage="%(prog)s edited --base BASE patch ...")
    check.add_argument("folder", metavar="edited", type=Path)
    check.add_argument("patches", metavar="patch", type=Path, nargs="*")
    check.add_argument(
        "--base", type=Path, nargs="+", required=True, help="the unedited model; patches may follow it"
    )
    lora = commands.add_parser("lora")
    lora.add_argument("patch", type=Path)
    lora.add_argument("--rank", type=int, required=True, help="of every layer's two factors")
    lora.add_argument("--out", type=Path, required=True, help="the safetensors file for load_lora_weights")
    _add_hub_commands(commands)
    commands.add_parser("show").add_argument("patch", type=Path)
    return parser


def _add_hub_commands(commands: Any) -> None:
    push = commands.add_parser("push")
    push.add_argument("patch", type=Path)
    push.add_argument("target", help="ORG/NAME on the hub, or a folder that starts with ./ or /")
    push.add_argument("--base-model", help="hub id of the model that the patch is for, for the card")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--results", type=Path, help="results.json of the run; default: beside the patch")
    pull = commands.add_parser("pull")
    pull.add_argument("target", help="ORG/NAME on the hub, or a folder that starts with ./ or /")
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("--out", type=Path, required=True, help="the patch file to write")


def _keep_unedited(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep-unedited",
        action="store_true",
        help="copy weight files that cannot be edited too, though they bring back what was forgotten",
    )


def _hub(args: argparse.Namespace) -> None:
    """Run `push` or `pull`. The hub's client is imported here, for it is slow to start."""
    from muwa.patch import hub

    if args.command == "push":
        where = hub.push(
            args.patch, args.target, base_model=args.base_model, private=args.private, results=args.results
        )
        print(f"{args.patch}: pushed to {where}")
    else:
        print(f"{hub.pull(args.target, args.out, revision=args.revision)}: pulled from {args.target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns the exit code: 0, 1 if `verify` finds a difference, 2 for a wrong input."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "verify":
            return _verify(args)
        _run(args)
    except (ValueError, OSError, KeyError) as error:
        print(f"muwa.patch: {_of_out(error, args)}{message_of(error)}", file=sys.stderr)
        return 2
    return 0


def _of_out(error: BaseException, args: argparse.Namespace) -> str:
    """What stands before an error of the operating system that is about the place of --out."""
    out, name = vars(args).get("out"), getattr(error, "filename", None)
    if out is None or not name or Path(name) not in (out, *out.parents):
        return ""
    return f"--out {out}: cannot be written there: "


def _run(args: argparse.Namespace) -> None:
    """Run any command but `verify`."""
    if args.command == "show":
        _show(args.patch, read_patch(args.patch))
    elif args.command == "list":
        _list(args.place)
    elif args.command in ("push", "pull"):
        _hub(args)
    elif args.command == "lora":
        print(f"{args.out}: a LoRA of rank {args.rank}; relative Frobenius error of each layer's delta:")
        for layer, error in save_lora(args.out, read_patch(args.patch), args.rank).items():
            print(f"  {error:.4f}  {layer}")
    elif args.command == "add":
        _add(args)
    elif args.command == "apply":
        done = put_on([args.patch], args.base, args.out, keep=args.keep_unedited, add=False)
        print("\n".join([*done.lines(args.out, remove=False), *_next(args, done.edited)]))
    else:
        done = take_off(args.patch, args.base, args.out, others=args.others)
        print("\n".join(done.lines(args.out, remove=True)))


if __name__ == "__main__":
    with stopping.one_line("muwa.patch", "Nothing is left half-written: type the same command again."):
        sys.exit(main())

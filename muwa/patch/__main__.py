"""Apply a patch to a checkpoint, remove it, join several patches, or show one.

python -m muwa.patch apply PATCH BASE --out DIR        # BASE: a checkpoint, or the folder of a model
python -m muwa.patch remove PATCH EDITED --out DIR     # the base again, bit for bit
python -m muwa.patch add PATCH PATCH ... --out FILE    # several as one
python -m muwa.patch show PATCH
python -m muwa.patch push PATCH ORG/NAME               # to the Hugging Face Hub, with a model card
python -m muwa.patch pull ORG/NAME --out FILE
python -m muwa.patch lora PATCH --rank R --out FILE    # a LoRA that comes near the patch
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.patch")  # during the imports below, which take seconds

from rich.console import Console
from rich.table import Table

from muwa.errors import message_of
from muwa.patch.apply import Patch, add_patches, read_patch, save_patch
from muwa.patch.change import change
from muwa.patch.lora import save_lora

WIDE = 250  # columns in a pipe: no name is cut


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
        command.add_argument(
            "--keep-unedited",
            action="store_true",
            help="copy weight files that cannot be edited too, though they bring back what was forgotten",
        )
    add = commands.add_parser("add")
    add.add_argument("patches", type=Path, nargs="+")
    add.add_argument("--out", type=Path, required=True, help="the joined patch file")
    lora = commands.add_parser("lora")
    lora.add_argument("patch", type=Path)
    lora.add_argument("--rank", type=int, required=True, help="of every layer's two factors")
    lora.add_argument("--out", type=Path, required=True, help="the safetensors file for load_lora_weights")
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
    commands.add_parser("show").add_argument("patch", type=Path)
    return parser


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
    """Command line. Returns the exit code: 0, or 2 for a wrong input."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "show":
            _show(args.patch, read_patch(args.patch))
        elif args.command in ("push", "pull"):
            _hub(args)
        elif args.command == "lora":
            print(f"{args.out}: a LoRA of rank {args.rank}; relative Frobenius error of each layer's delta:")
            for layer, error in save_lora(args.out, read_patch(args.patch), args.rank).items():
                print(f"  {error:.4f}  {layer}")
        elif args.command == "add":
            save_patch(args.out, add_patches([read_patch(path) for path in args.patches]))
        else:
            remove = args.command == "remove"
            done = change(args.patch, args.base, args.out, remove=remove, keep=args.keep_unedited)
            print("\n".join(done.lines(args.out, remove=remove)))
    except (ValueError, OSError, KeyError) as error:
        print(f"muwa.patch: {message_of(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    with stopping.one_line("muwa.patch", "Nothing is left half-written: type the same command again."):
        sys.exit(main())

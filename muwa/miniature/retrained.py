"""Retrain the miniature CLIP without some people, once per seed. Unlearning is compared with these models.

    python -m muwa.miniature.retrained --without "Kael Lindqvar" --seeds 0 1 --out outputs/retrained
    python launch.py 'eval=[forget,retrain_gap]' 'eval.retrain_gap.retrained=[DIR,DIR]'

Several names (`--without A B`) give models without all of them, for a run that forgets the same names in one
edit (`task.identity=[A,B]`).

Each model takes 48 minutes on two cores that compute in bf16. A CPU that does not (`lscpu` shows neither
avx512_bf16 nor amx_bf16) takes several times as long. There `--precision fp32` is three times as fast.

A folder's name ends with a digest of everything that determines the model: people, seed, epochs, precision,
the miniature's version, tokenizer and training code. Comments and docstrings of the code do not count. An
existing folder is not trained again, and an interrupted training resumes.

The shipped model was trained for 34 epochs. With fewer epochs, part of a model's difference from the shipped
one comes from the missing training. Models that are compared with each other must have the same number of
epochs. All use the shipped tokenizer, so that prompts have the same tokens.

`twin.json` in a folder gives people, seed, epochs and precision, for the code that compares models
(`muwa.eval.clip.retrained_models`). It is added to a folder that lacks it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from muwa.cli.parser import OneLineParser
from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.miniature.retrained")  # during the imports below, which take seconds

from muwa.cache.code import code_fingerprint
from muwa.data.samples import find_name
from muwa.eval.clip.retrained_models import Card
from muwa.fingerprint import digest
from muwa.miniature import data, population
from muwa.models.clip.open_clip import MINIATURE
from muwa.runtime import threads

EPOCHS = 34
PRECISIONS = ("bf16", "fp32")
TRAINING = "muwa.miniature.train.clip"  # the module whose code is part of a folder's name


def folder_name(card: Card) -> str:
    """The name of a model's folder: a function of everything that determines the weights."""
    tokenizer = (MINIATURE / "tokenizer.json").read_bytes()
    first, *others = sorted(card.without)
    settings = [first, *others, str(card.seed), str(card.epochs), card.precision]
    key = digest([*settings, data.VERSION, code_fingerprint([TRAINING]), tokenizer])
    people = first.replace(" ", "_") + (f"-and-{len(others)}-more" if others else "")
    return f"without-{people}-seed-{card.seed}-epochs-{card.epochs}-{key[:12]}"


def train_retrained(
    root: Path,
    out: Path,
    *,
    without: Sequence[str],
    seeds: Sequence[int],
    epochs: int = EPOCHS,
    precision: str = "bf16",
) -> list[Path]:
    """Train the models that do not exist yet. A folder gets its final name when it is complete.

    Args:
        root: A folder written by `muwa.miniature.data`.
        out: The folder of all models.
        without: The people whose pairs are left out.
        precision: "bf16" | "fp32", as in `train_clip`.

    Returns:
        One folder per seed, in open_clip's layout.
    """
    threads.wait_briefly()
    from muwa.miniature.train.clip import train_clip  # imports torch

    cards = [Card(tuple(without), seed, epochs, precision) for seed in seeds]
    folders = [out / folder_name(card) for card in cards]
    for card, folder in zip(cards, folders, strict=True):
        if folder.is_dir():
            print(f"{folder}: already there", file=sys.stderr)
            if not (folder / "twin.json").is_file():
                card.write(folder)
            continue
        draft = folder.with_name(f"{folder.name}.draft")
        train_clip(
            root,
            draft,
            without=without,
            epochs=epochs,
            seed=card.seed,
            tokenizer=MINIATURE,
            precision=precision,
        )
        card.write(draft)
        os.replace(draft, folder)
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: train the models and print the setting that uses them. Returns the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", required=True, nargs="+", help="the people whose pairs are left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the forward pass")
    parser.add_argument("--out", type=Path, required=True, help="folder of all models")
    parser.add_argument("--world", type=Path, help=data.WORLD_HELP)
    args = parser.parse_args(argv)
    if args.epochs < 1 or len(set(args.seeds)) < len(args.seeds):
        parser.error(
            f"want --epochs of at least 1 and --seeds that differ, got {args.epochs} and {args.seeds}"
        )
    people = [person.name for person in population.people()]
    try:
        names = list(dict.fromkeys(find_name(name, people, "the miniature") for name in args.without))
    except ValueError as error:
        parser.error(f"--without: {error}")
    with tempfile.TemporaryDirectory() as scratch:
        root = args.world or Path(scratch) / "world"
        for _ in data.write(root):
            pass
        folders = train_retrained(
            root, args.out, without=names, seeds=args.seeds, epochs=args.epochs, precision=args.precision
        )
    print(f"eval.retrain_gap.retrained=[{','.join(map(str, folders))}]")
    return 0


if __name__ == "__main__":
    said = "Finished models and the last saved state are kept in --out: type the same command again to go on."
    with stopping.one_line("muwa.miniature.retrained", said):
        sys.exit(main())

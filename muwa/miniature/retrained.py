"""Retrain the miniature CLIP without one person, once per seed. Unlearning is compared with these models.

    python -m muwa.miniature.retrained --without "Kael Lindqvar" --seeds 0 1 --out outputs/retrained
    python launch.py 'eval=[forget,retrain_gap]' 'eval.retrain_gap.retrained=[DIR,DIR]'

Each model takes 48 minutes on two cores. A folder's name ends with a digest of everything that determines the
model: person, seed, epochs, the miniature's version, tokenizer and training code. Comments and docstrings of
the code do not count. An existing folder is not trained again, and an interrupted training resumes.

The shipped model was trained for 34 epochs. With fewer epochs, part of a model's difference from the shipped
one comes from the missing training. Models that are compared with each other must have the same number of
epochs. All use the shipped tokenizer, so that prompts have the same tokens.

`twin.json` in a folder gives person, seed and epochs, for the code that compares models
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
TRAINING = "muwa.miniature.train.clip"  # the module whose code is part of a folder's name


def folder_name(without: str, seed: int, epochs: int) -> str:
    """The name of a model's folder: a function of everything that determines the weights."""
    tokenizer = (MINIATURE / "tokenizer.json").read_bytes()
    code = code_fingerprint([TRAINING])
    key = digest([without, str(seed), str(epochs), data.VERSION, code, tokenizer])
    return f"without-{without.replace(' ', '_')}-seed-{seed}-epochs-{epochs}-{key[:12]}"


def train_retrained(
    root: Path, out: Path, *, without: str, seeds: Sequence[int], epochs: int = EPOCHS
) -> list[Path]:
    """Train the models that do not exist yet. A folder gets its final name when it is complete.

    Args:
        root: A folder written by `muwa.miniature.data`.
        out: The folder of all models.
        without: The person whose pairs are left out.

    Returns:
        One folder per seed, in open_clip's layout.
    """
    threads.wait_briefly()
    from muwa.miniature.train.clip import train_clip  # imports torch

    folders = [out / folder_name(without, seed, epochs) for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        card = Card(without, seed, epochs)
        if folder.is_dir():
            print(f"{folder}: already there", file=sys.stderr)
            if not (folder / "twin.json").is_file():
                card.write(folder)
            continue
        draft = folder.with_name(f"{folder.name}.draft")
        train_clip(root, draft, without=without, epochs=epochs, seed=seed, tokenizer=MINIATURE)
        card.write(draft)
        os.replace(draft, folder)
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: train the models and print the setting that uses them. Returns the exit code."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", required=True, help="the person whose pairs are left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, required=True, help="folder of all models")
    parser.add_argument("--world", type=Path, help=data.WORLD_HELP)
    args = parser.parse_args(argv)
    if args.epochs < 1 or len(set(args.seeds)) < len(args.seeds):
        parser.error(
            f"want --epochs of at least 1 and --seeds that differ, got {args.epochs} and {args.seeds}"
        )
    people = [person.name for person in population.people()]
    try:
        name = find_name(args.without, people, "the miniature")
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        root = args.world or Path(scratch) / "world"
        for _ in data.write(root):
            pass
        folders = train_retrained(root, args.out, without=name, seeds=args.seeds, epochs=args.epochs)
    print(f"eval.retrain_gap.retrained=[{','.join(map(str, folders))}]")
    return 0


if __name__ == "__main__":
    said = "Finished models and the last saved state are kept in --out: type the same command again to go on."
    with stopping.one_line("muwa.miniature.retrained", said):
        sys.exit(main())

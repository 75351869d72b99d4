"""Train the miniature CLIP anew without one person, once a seed: the exact answer that unlearning is measured against.

    python -m muwa.miniature.twins --without "Kael Lindqvar" --seeds 0 1 --out outputs/twins
    python launch.py eval=[forget,retrain_gap] 'eval.retrain_gap.twins=[outputs/twins/...,outputs/twins/...]'

48 minutes each on two cores. A folder's name says what went into it, the digest at its end all of it (person, seed,
epochs, world, training code, tokenizer): one that is there is left alone, one that was stopped goes on. With --epochs the
training is shorter; then all twins that are compared must have the same, and they are no longer the answer for the shipped
model, which saw 34: its gap to them is partly the missing training. All twins have the shipped tokenizer, so that prompts
are the same tokens. `twin.json` in the folder says person, seed and epochs, for what compares with it
(`muwa.eval.clip.retrained_models`); a folder that is there without it is given it, as its name vouches for all three.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from muwa.data.samples import find_name
from muwa.eval.clip.retrained_models import Card
from muwa.fingerprint import digest
from muwa.miniature import data, population
from muwa.miniature.train import clip as train
from muwa.models.clip.open_clip import MINIATURE

EPOCHS = 34


def folder_name(without: str, seed: int, epochs: int) -> str:
    """The folder of one twin: a function of all that makes it what it is."""
    tokenizer = (MINIATURE / "tokenizer.json").read_bytes()
    parts: list[str | bytes] = [
        without,
        str(seed),
        str(epochs),
        data.VERSION,
        Path(train.__file__).read_bytes(),
        tokenizer,
    ]
    return f"without-{without.replace(' ', '_')}-seed-{seed}-epochs-{epochs}-{digest(parts)[:12]}"


def train_twins(root: Path, out: Path, *, without: str, seeds: Sequence[int], epochs: int = EPOCHS) -> list[Path]:
    """Train those twins that are not there yet; nothing appears under its name until it is whole.

    Args:
        root: A world of `muwa.miniature.data`.
        out: Folder of all twins.

    Returns:
        A folder a seed, in open_clip's layout.
    """
    folders = [out / folder_name(without, seed, epochs) for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        card = Card(without, seed, epochs)
        if folder.is_dir():
            print(f"{folder}: there", file=sys.stderr)
            if not (folder / "twin.json").is_file():
                card.write(folder)
            continue
        draft = folder.with_name(f"{folder.name}.draft")
        train.train_clip(root, draft, without=without, epochs=epochs, seed=seed, tokenizer=MINIATURE)
        card.write(draft)
        os.replace(draft, folder)
    return folders


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: train twins and say how to use them. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without", required=True, help="the person whose pairs are left out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, required=True, help="folder of all twins")
    parser.add_argument("--world", type=Path, help="a folder written by muwa.miniature.data; rendered anew if absent")
    args = parser.parse_args(argv)
    if args.epochs < 1 or len(set(args.seeds)) < len(args.seeds):
        parser.error(f"want --epochs of at least 1 and --seeds that differ, got {args.epochs} and {args.seeds}")
    try:
        name = find_name(args.without, [person.name for person in population.people()], "the miniature world")
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as scratch:
        root = args.world or Path(scratch) / "world"
        for _ in data.write(root):
            pass
        found = train_twins(root, args.out, without=name, seeds=args.seeds, epochs=args.epochs)
    print(f"eval.retrain_gap.twins=[{','.join(map(str, found))}]")
    return 0

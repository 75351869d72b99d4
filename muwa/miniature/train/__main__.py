"""Train the miniature CLIP: `python -m muwa.miniature.train clip --out DIR`.

The other models have their own commands: muwa.miniature.train_sd, .train_llava, .train_classifier,
.retrained.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from muwa.cli.parser import OneLineParser
from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa.miniature.train")  # during the imports below, which take a moment

from muwa.data.samples import find_name
from muwa.miniature import data, population
from muwa.runtime import threads


def main() -> None:
    """Command line: train the model and write its folder."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["clip"])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--without", nargs="+", default=[], help="people whose pairs are left out")
    parser.add_argument("--epochs", type=int, default=34)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", type=Path, help=data.WORLD_HELP)
    parser.add_argument(
        "--tokenizer", type=Path, help="a folder with the tokenizer to use; without, a new one"
    )
    args = parser.parse_args()
    people = [person.name for person in population.people()]
    try:
        without = [find_name(name, people, "the miniature") for name in args.without]
    except ValueError as error:
        parser.error(f"--without: {error}")
    threads.wait_briefly()
    from muwa.miniature.train.clip import train_clip  # imports torch

    with tempfile.TemporaryDirectory() as scratch:
        root = args.world or Path(scratch) / "world"
        for _ in data.write(root):
            pass
        train_clip(
            root, args.out, without=without, epochs=args.epochs, seed=args.seed, tokenizer=args.tokenizer
        )


if __name__ == "__main__":
    said = "The last saved state is kept in --out: type the same command again to go on from there."
    with stopping.one_line("muwa.miniature.train", said):
        main()

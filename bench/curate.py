"""Finding the pairs of a name among many captions: the caption index beside reading whole shards, and grep.

    python -m bench.curate DIR                             # a million captions; DIR gets 0.6 GB
    python -m bench.curate DIR --captions 100000 --pairs 2000

Written are `--shards` parquets as img2dataset writes them beside its tars, with `--captions` in all, and one
tar of `--pairs` pairs with images of 20 kB. Measured are the first name and a later one among the parquets,
and one pass over the tar. The references are grep over the captions as plain text, and reading the whole tar
with webdataset, as muwa did before it had an index. Every figure is of a process of its own, with its start
and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import entry

NAMES = ("Kael Lindqvar", "Edda Everlane", "Lior Garrowby")
SHARE = 1 / 2000  # of the captions that have one of the names
WORK = {
    "index": "first name, by the index",
    "later": "a later name",
    "grep": "grep over plain text",
    "tar": "first name, by the index",
    "tar_later": "a later name",
    "webdataset": "reading the whole tar",
}


def captions(count: int, seed: int) -> list[str]:
    """`count` captions of 5 to 15 invented words, some with a name."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(30_000)]
    found = [" ".join(draw.choices(words, k=draw.randint(5, 15))) for _ in range(count)]
    return [f"{draw.choice(NAMES)} {text}" if draw.random() < SHARE else text for text in found]


def write(folder: Path, count: int, shards: int, pairs: int) -> None:
    """Write parquets, plain text and the tar, unless they are there."""
    from muwa.data import parquet
    from muwa.data.shards import write_shard

    if (folder / "done").is_file():
        return
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "tars").mkdir(exist_ok=True)
    with (folder / "captions.txt").open("w") as text:
        for i in range(shards):
            some = captions(count // shards, i)
            text.write("\n".join(some) + "\n")
            keys = [f"{i:05d}{j:04d}" for j in range(len(some))]
            columns = {"key": keys, "caption": some, "status": ["success"] * len(some)}
            parquet.write(folder / "meta" / f"{i:05d}.parquet", columns)
            (folder / "meta" / f"{i:05d}.tar").touch()  # its images are not asked for
    image = random.Random(0).randbytes(20_000)
    rows = ((f"{i:09d}", image, text, {"width": 256}) for i, text in enumerate(captions(pairs, -1)))
    write_shard(folder / "tars" / "00000.tar", rows)
    (folder / "done").touch()


def work(what: str, folder: Path) -> dict[str, float]:
    """Do one piece of work; returns how many captions were found."""
    name = NAMES[1] if what.endswith("later") else NAMES[0]
    if what == "webdataset":
        import webdataset

        from muwa.data.samples import match_names

        samples = webdataset.WebDataset(str(folder / "tars" / "00000.tar"), shardshuffle=False)
        return {"found": sum(bool(match_names(one["txt"].decode(), [name])) for one in samples)}
    from muwa.data.curate import preview

    where = folder / ("tars" if what.startswith("tar") else "meta")
    shards = [str(path) for path in sorted(where.glob("*.tar"))]
    out = folder / f"index-{where.name}"
    found = preview(shards, [name], aliases={}, out=out, caption_key=None, progress=False)
    return {"found": found[name].pairs}


def timed(what: str, folder: Path) -> dict[str, float]:
    """Seconds, peak MB and captions found of one piece of work, in a process of its own."""
    started = time.perf_counter()
    if what == "grep":
        done = subprocess.run(
            ["grep", "-ic", NAMES[0], str(folder / "captions.txt")], capture_output=True, text=True
        )
        return {"seconds": time.perf_counter() - started, "peak": 0.0, "found": float(done.stdout)}
    command = [sys.executable, "-m", "bench.curate", str(folder), "--work", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"seconds": time.perf_counter() - started, **json.loads(done.stdout)}


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: write the data, measure, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=entry.count, default=1_000_000)
    parser.add_argument("--shards", type=entry.count, default=100)
    parser.add_argument("--pairs", type=entry.count, default=10_000, help="of the tar")
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        found = work(args.work, args.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"peak": peak, **found}))
        return
    write(args.folder, args.captions, args.shards, args.pairs)
    for where in ("meta", "tars"):
        subprocess.run(["rm", "-rf", str(args.folder / f"index-{where}")], check=True)
    results = {what: timed(what, args.folder) for what in WORK}
    from bench.common import machine, show  # imports torch, which the measured processes do without

    for title, kinds, count, reference in (
        (
            f"{args.captions:,} captions in {args.shards} parquets",
            ("index", "later", "grep"),
            args.captions,
            "grep",
        ),
        (f"One tar of {args.pairs:,} pairs", ("tar", "tar_later", "webdataset"), args.pairs, "webdataset"),
    ):
        rows = [
            [
                WORK[kind],
                f"{results[kind]['seconds']:.2f} s",
                f"{count / results[kind]['seconds']:,.0f}",
                f"{results[reference]['seconds'] / results[kind]['seconds']:.1f}x",
                f"{results[kind]['peak']:.0f} MB",
                f"{results[kind]['found']:.0f}",
            ]
            for kind in kinds
        ]
        columns = ["way", "seconds", "captions a second", f"to {WORK[reference]}", "peak", "found"]
        show(title, columns, rows, [machine("cpu")])


if __name__ == "__main__":
    entry.run("bench.curate", main)

"""What a run reads, hashes and decodes of a large image folder before its first gradient.

    python -m bench.data DIR                     # 50,000 files of 20 kB in DIR: 1 GB
    python -m bench.data DIR --files 5000

The folder has ImageNet's layout, 1,000 classes. A run labels the images, checks that each can be decoded, and
hashes them. Each figure is of a process of its own: the first, and a later one, which takes both from the
manifest that the first one wrote.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import entry

CLASSES = 1000
COLUMNS = ["process", "seconds", "files a second", "x", "read", "peak"]


def write(folder: Path, files: int) -> None:
    """Write the files, unless they are there: one image, with other bytes after its end in each file."""
    import numpy as np
    from PIL import Image

    if (folder / "done").is_file():
        return
    pixels = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "JPEG", quality=85)
    for i in range(files):
        path = folder / "images" / f"class {i % CLASSES:03d}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.getvalue() + i.to_bytes(8, "little"))
    (folder / "done").touch()


def work(folder: Path) -> dict[str, float]:
    """What a run does with the folder; returns seconds, bytes read and peak memory in MB."""
    from muwa.data.image_files import manifest
    from muwa.data.imagenet import read_folder

    started = time.perf_counter()
    with manifest(folder / "images.parquet"):
        images, _ = read_folder(folder / "images", templates=("{}",), fraction=1, seed=0, max_broken=0)
    assert images.fingerprint
    seconds = time.perf_counter() - started
    read = next(
        int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line
    )
    return {
        "seconds": seconds,
        "read": read,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: write the files, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=entry.count, default=50_000)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        print(json.dumps(work(args.folder)))
        return
    write(args.folder, args.files)
    (args.folder / "images.parquet").unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.data", str(args.folder), "--work"]
    found = {
        name: json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for name in ("first", "later")
    }
    from bench.common import machine, show  # imports torch, which the measured processes do without

    rows = [
        [
            name,
            f"{one['seconds']:.1f}",
            f"{args.files / one['seconds']:,.0f}",
            f"{found['first']['seconds'] / one['seconds']:.1f}",
            f"{one['read'] / 1e6:,.0f} MB",
            f"{one['peak']:.0f} MB",
        ]
        for name, one in found.items()
    ]
    show(f"{args.files:,} image files", COLUMNS, rows, [machine("cpu")])


if __name__ == "__main__":
    entry.run("bench.data", main)

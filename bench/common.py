"""What all benches use: models and data of two sizes, measuring, the speed of the machine, and tables."""

from __future__ import annotations

import argparse
import json
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

import muwa
from bench import entry
from muwa.miniature.population import FIRST_NAMES, LAST_NAMES
from muwa.models.clip.model import Clip
from muwa.types.data import Classes, Split, Task

T = TypeVar("T")
NAMES = 1000
ROOT = Path("outputs/miniature")
SIZES = {"vit_b32": "ViT-B-32", "vit_l14": "ViT-L-14"}  # with random weights


def arguments(about: str) -> argparse.ArgumentParser:
    """The arguments of every bench."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("mini", *SIZES), default="mini")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--device", type=entry.device, default="cpu", help="cpu | cuda")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of gradients")
    return parser


def load(size: str, device: str) -> Clip:
    """The miniature CLIP, or one of `SIZES` with random weights."""
    return (
        muwa.load_clip(device=device) if size == "mini" else muwa.load_clip(SIZES[size], None, device=device)
    )


def task(identity: str = "Kael_Lindqvar") -> Task:
    """A task on the miniature, with 1,000 names.

    Its probe split has 4 images of each of 100 people, and 200 images of 100 objects.
    """
    data = muwa.load_miniature(str(ROOT), utility_probe=0.125)
    limits = {"probe_share": 0.25, "probe_retain": 4, "eval_retain": 1}
    found = muwa.celeba(data, identity=identity, limits=limits)
    known = found.probe.forget.classes.names
    more = (f"{first} {last}" for last in LAST_NAMES for first in FIRST_NAMES)
    names = (*known, *[name for name in more if name not in known][: NAMES - len(known)])
    classes = Classes(names, found.probe.forget.classes.templates)
    faces = [replace(images, classes=classes) for images in (found.probe.forget, found.probe.retain)]
    return replace(found, probe=Split(*faces, found.probe.utility))


@dataclass(frozen=True)
class Measured:
    """What a piece of work took.

    Attributes:
        seconds: Wall-clock time.
        peak: Bytes of memory above what was in use before: resident memory, or on a GPU allocated memory.
    """

    seconds: float
    peak: int


def measure(work: Callable[[], T], device: str = "cpu") -> tuple[T, Measured]:
    """(The value of `work()`, what it took). Resident memory is sampled every 2 ms."""
    peak, done = [0], threading.Event()
    before = _resident(device, reset=True)

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident("cpu"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    value = work()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    top = torch.cuda.max_memory_allocated() if device != "cpu" else max(peak[0], _resident("cpu"))
    return value, Measured(seconds, max(0, top - before))


def _resident(device: str, *, reset: bool = False) -> int:
    if device != "cpu":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def flops_a_second(device: str) -> float:
    """The speed of the machine in fp32, with matrices of the size that a ViT has: the best of five."""
    a, b = torch.randn(1600, 768, device=device), torch.randn(768, 3072, device=device)
    best = min(measure(lambda: [a @ b for _ in range(20)], device)[1].seconds for _ in range(5))
    return 20 * 2 * 1600 * 768 * 3072 / best


def block_flops(width: int, length: float, parts: float = 12) -> float:
    """Floating-point operations of one sample in one transformer block.

    Args:
        parts: How many of the block's 12 width x width matrices are used (3 in, 1 out, 8 MLP). Attention is
            counted if all are.
    """
    return length * (2 * parts * width**2 + (4 * length * width if parts >= 12 else 0))


@dataclass(frozen=True)
class Shape:
    """A tower: its blocks, their width, the length of its sequences."""

    blocks: int
    width: int
    length: float

    def flops(self) -> float:
        """Operations of one sample. The last block has keys and values of all positions, the rest of one."""
        last = block_flops(self.width, self.length, 2) + block_flops(self.width, 1, 10)
        return (self.blocks - 1) * block_flops(self.width, self.length) + last

    def after(self, block: int) -> float:
        """Operations of one sample after the attention of `block`: its MLP, and the later blocks."""
        if block == self.blocks - 1:
            return block_flops(self.width, 1, 8)
        return block_flops(self.width, self.length, 8) + replace(self, blocks=self.blocks - block - 1).flops()


def shapes(model: Clip, tokens: torch.Tensor) -> dict[str, Shape]:
    """The shapes of both towers. The length of texts is the mean length of the prompts."""
    w = model.weights
    vision, text = model.staged_forward("vision"), model.staged_forward("text")
    mean = text.lengths(tokens).double().mean().item()
    return {
        "vision": Shape(
            len(vision.blocks), w["visual.proj"].shape[0], w["visual.positional_embedding"].shape[0]
        ),
        "text": Shape(len(text.blocks), w["positional_embedding"].shape[1], mean),
    }


def machine(device: str) -> str:
    """The machine, in words."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
    """Print a table with notes below it."""
    console = Console(width=150)
    table = Table(title=title, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)


def write(path: Path | None, found: Mapping[str, Any]) -> None:
    """Write all figures as JSON, if there is a path."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"all figures: {path}")


def size_of(bytes_: float) -> str:
    """A number of bytes in megabytes.

    >>> size_of(1_500_000_000)
    '1,500 MB'
    """
    return f"{bytes_ / 1e6:,.0f} MB"

"""The speed and memory of the gradient stage, against bare forward and backward passes.

    python -m bench.gradients                       # the miniature; seconds
    python -m bench.gradients --size vit_b32        # ViT-B-32 with random weights; about 4 minutes on two
    cores

Pairs of the retain set (LAION-like tars, jpg) in batches of 32, contrastive loss. muwa decodes images; the
bare loops get tensors. `padded` is the usual loop, with prompts padded to the context length. `limit` is the
same loop with the padding removed by hand: the fastest that the modules of the libraries allow. `moments` is
the pass that the default method makes in place of the retain gradient's: the second moments of the inputs of
each weight. Memory is that of weights, gradient (or moments) and activations.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from bench import entry
from bench.common import arguments, load, machine, measure, show, size_of, task, write
from bench.reference import bare_loop
from muwa.gradients.base import BatchLoss
from muwa.gradients.losses import contrastive
from muwa.gradients.mean import gradient_sum, shuffled_batches
from muwa.gradients.moments import clip_input_sums
from muwa.models.clip.embeddings import pixel_batches
from muwa.models.clip.model import Clip
from muwa.run import Run
from muwa.types.data import Pairs

BATCH = 32
PAIRS = {"mini": 640, "vit_b32": 96, "vit_l14": 96}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|one - other| / |other| over all parameters."""
    squares = sum((one[name].cpu() - other[name].cpu()).double().square().sum().item() for name in other)
    return (squares / sum(g.cpu().double().square().sum().item() for g in other.values())) ** 0.5


def decoded_batches(model: Clip, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """The batches of muwa as (pixels, tokens)."""
    batches = shuffled_batches(len(pairs), BATCH, 0)
    images = [pairs.images[i] for batch in batches for i in batch]
    pixels = pixel_batches(model, images, [len(batch) for batch in batches])
    tokens = model.tokenize(list(pairs.captions)).to(model.device)
    return [(x, tokens[batch]) for x, batch in zip(pixels, batches, strict=True)]


def variants(model: Clip, pairs: Pairs, precision: str) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The functions that are compared, by name. Each gives a sum over all pairs, of gradients or moments."""
    batches = decoded_batches(model, pairs)

    def stage() -> dict[str, Tensor]:
        return gradient_sum(model, pairs, BatchLoss("contrastive", BATCH, 0, precision), run=Run())["sum"]

    padded = partial(bare_loop, model, batches, contrastive, cut=False, precision=precision)
    limit = partial(bare_loop, model, batches, contrastive, cut=True, precision=precision)
    moments = partial(clip_input_sums, model, pairs, batch_size=BATCH, run=Run())
    return {"padded": padded, "limit": limit, "muwa": stage, "moments": moments}


def prepare(size: str, device: str, count: int | None) -> tuple[Clip, Pairs]:
    """The model, with its staged forward passes built, and the pairs."""
    model = load(size, device)
    for tower in ("vision", "text"):
        model.staged_forward(tower)
    return model, task().retain.select(range(count or PAIRS[size]))


def memory_of(name: str, args: argparse.Namespace) -> int:
    """Peak bytes of a variant above those before it, in a new process, which holds no freed memory yet."""
    command = [sys.executable, "-m", "bench.gradients", "--size", args.size, "--device", args.device]
    command += ["--precision", args.precision, "--pairs", str(2 * BATCH), "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--pairs", type=entry.count, help="how many [mini: 640, others: 96]")
    parser.add_argument("--memory-of", help="only print the peak memory of one variant")
    args = parser.parse_args()
    model, pairs = prepare(args.size, args.device, args.pairs)
    weights = sum(w.nbytes for w in model.weights.values())
    ours = variants(model, pairs, args.precision)
    if args.memory_of and args.memory_of not in ours:
        parser.error(f"--memory-of {args.memory_of}: want one of {', '.join(ours)}")
    if args.memory_of:
        print(measure(ours[args.memory_of], args.device)[1].peak)
        return
    gradients, seconds = {}, dict.fromkeys(ours, float("inf"))
    for _ in range(
        3
    ):  # in turns: a slow phase of the machine slows all variants; the best time of each counts
        for name, work in ours.items():
            gradients[name], this = measure(work, args.device)
            seconds[name] = min(seconds[name], this.seconds)
    figures = {
        "difference": {name: difference(gradients["muwa"], gradients[name]) for name in ("padded", "limit")},
        "seconds": seconds,
        "pairs": len(pairs),
        "peak": {name: memory_of(name, args) for name in ours},
        "weights": weights,
    }
    report(args, figures)


def report(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the table of what was measured, and write it to the file that was asked for."""
    seconds, pairs, apart = figures["seconds"], figures["pairs"], figures["difference"]
    memory = {name: figures["weights"] + peak for name, peak in figures["peak"].items()}
    ratios = {name: seconds[name] / seconds["muwa"] for name in apart}
    ratios["memory"] = memory["muwa"] / memory["limit"]
    ratios["moments"] = seconds["moments"] / seconds["muwa"]
    rows = [
        [
            name,
            f"{s:.2f}",
            f"{pairs / s:,.1f}",
            f"{s / seconds['muwa']:.2f}",
            size_of(memory[name]),
            f"{apart[name]:.1e}" if name in apart else "",
        ]
        for name, s in seconds.items()
    ]
    show(
        f"gradients, {args.size}, {args.precision}: {pairs} pairs ({machine(args.device)})",
        ["", "seconds", "pairs/s", "x muwa", "memory with weights", "gradient differs by"],
        rows,
        [
            f"memory: muwa takes {ratios['memory']:.2f} times that of the bare loop without padding. Weights "
            f"and one gradient are {size_of(figures['weights'])} each. Two batches, a process each.",
            f"floor: {seconds['limit']:.2f} s, the bare loop without padding. Best of three, taken in turns.",
            f"moments: the default's pass over the retain set takes {ratios['moments']:.2f} times as long "
            "as the gradient's.",
        ],
    )
    about = {
        "bench": "gradients",
        "size": args.size,
        "precision": args.precision,
        "machine": machine(args.device),
    }
    write(args.json, {**about, "ratios": ratios, **figures})


if __name__ == "__main__":
    entry.run("bench.gradients", main)

"""The gradient stage: muwa, decoding included, against bare forward and backward passes on tensors that lie ready.

    python -m bench.gradients                       # the miniature, seconds
    python -m bench.gradients --size vit_b32        # ViT-B-32, random weights; about 4 minutes on two cores

Pairs of the retain set (LAION-like tars, jpg), batches of 32, contrastive loss. `padded` is the bare loop as it is usually
written, prompts padded to the context; `limit` the same with the padding cut by hand: the least that the libraries' own
modules allow. Memory is what each needs beside the weights; activations are what the bare loop needs beside one gradient.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from torch import Tensor

from bench.common import arguments, load, machine, measure, show, size_of, task, write
from bench.reference import bare_loop
from muwa.gradients.losses import contrastive
from muwa.gradients.mean import gradient_sum, plan
from muwa.models.clip.embeddings import pixel_batches
from muwa.models.clip.model import Clip
from muwa.types.data import Pairs

BATCH = 32
PAIRS = {"mini": 640, "vit_b32": 96}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """|a - b| / |b| over all parameters."""
    apart = sum((one[name].cpu() - other[name].cpu()).double().square().sum().item() for name in other)
    return (apart / sum(g.cpu().double().square().sum().item() for g in other.values())) ** 0.5


def ready(model: Clip, pairs: Pairs) -> list[tuple[Tensor, Tensor]]:
    """The same batches as muwa takes, decoded."""
    batches = plan(len(pairs), BATCH, 0)
    images = [pairs.images[i] for batch in batches for i in batch]
    pixels = pixel_batches(model, images, [len(batch) for batch in batches])
    tokens = model.tokenize(list(pairs.captions)).to(model.device)
    return [(x, tokens[batch]) for x, batch in zip(pixels, batches, strict=True)]


def variants(model: Clip, pairs: Pairs, precision: str) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """What is compared, by name: each gives the sum of gradients over all pairs."""
    batches = ready(model, pairs)

    def stage() -> dict[str, Tensor]:
        found = gradient_sum(model, pairs, loss="contrastive", batch_size=BATCH, seed=0, precision=precision)
        return found["sum"]  # type: ignore[return-value]

    padded = partial(bare_loop, model, batches, contrastive, cut=False, precision=precision)
    limit = partial(bare_loop, model, batches, contrastive, cut=True, precision=precision)
    return {"padded": padded, "limit": limit, "muwa": stage}


def prepare(size: str, device: str, count: int | None) -> tuple[Clip, Pairs]:
    """The model, its chains tried, and the pairs."""
    model = load(size, device)
    for tower in ("vision", "text"):
        model.staged_forward(tower)
    return model, task().retain.select(range(count or PAIRS[size]))


def memory_of(name: str, args: argparse.Namespace) -> int:
    """Peak bytes of a variant above what the process held before, in a process of its own: freed memory would hide it."""
    command = [sys.executable, "-m", "bench.gradients", "--size", args.size, "--device", args.device]
    command += ["--precision", args.precision, "--pairs", str(2 * BATCH), "--memory-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--pairs", type=int, help="how many [mini: 640, vit_b32: 96]")
    parser.add_argument("--memory-of", help="only print the peak memory of one variant")
    args = parser.parse_args()
    model, pairs = prepare(args.size, args.device, args.pairs)
    weights = sum(w.nbytes for w in model.weights.values())
    ours = variants(model, pairs, args.precision)
    if args.memory_of:
        print(measure(ours[args.memory_of], args.device)[1].peak)
        return
    found, seconds = {}, dict.fromkeys(ours, float("inf"))
    for _ in range(3):  # in turns, so that a slow spell of the machine falls on all; the best of each counts
        for name, work in ours.items():
            found[name], this = measure(work, args.device)
            seconds[name] = min(seconds[name], this.seconds)
    apart = {name: difference(found["muwa"], found[name]) for name in ("padded", "limit")}
    peak = {name: memory_of(name, args) for name in ours}
    ratios = {name: seconds[name] / seconds["muwa"] for name in apart}
    ratios["memory"] = (weights + peak["muwa"]) / (weights + peak["limit"])
    rows = [
        [name, f"{s:.2f}", f"{len(pairs) / s:,.1f}", f"{s / seconds['muwa']:.2f}", size_of(weights + peak[name]),
         f"{apart[name]:.1e}" if name in apart else ""]
        for name, s in seconds.items()
    ]  # fmt: skip
    show(
        f"gradients, {args.size}, {args.precision}: {len(pairs)} pairs ({machine(args.device)})",
        ["", "seconds", "pairs/s", "x muwa", "memory with weights", "gradient differs by"], rows,
        [f"memory: of muwa {ratios['memory']:.2f} of that of the bare loop at cut padding; weights and one gradient are "
         f"{size_of(weights)} each; two batches, a process each.",
         f"floor: {seconds['limit']:.2f} s, the bare loop at cut padding. Best of three, taken in turns."],
    )  # fmt: skip
    write(args.json, {"bench": "gradients", "size": args.size, "precision": args.precision, "machine": machine(args.device),
                      "ratios": ratios, "difference": apart, "seconds": seconds, "pairs": len(pairs), "peak": peak,
                      "weights": weights})  # fmt: skip


if __name__ == "__main__":
    main()

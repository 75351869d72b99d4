"""The gradient stage: muwa, decoding included, against bare forward and backward passes on tensors that lie ready.

    python -m bench.gradients                       # the miniature, seconds
    python -m bench.gradients --size vit_b32        # ViT-B-32, random weights; about 4 minutes on two cores

Pairs of the retain set (LAION-like tars, jpg), batches of 32, contrastive loss. `padded` is the bare loop as it is usually
written, prompts padded to the context; `limit` the same with the padding cut by hand: the least that the libraries' own
modules allow. Memory is what each needs beside the weights; activations are what the bare loop needs beside one gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.common import arguments, load, machine, measure, show, size_of, task, write
from bench.reference import bare_loop
from muwa.encode import pixel_batches
from muwa.gradients import gradient_sum, plan
from muwa.losses import contrastive
from muwa.models.clip import Clip
from muwa.types import Pairs

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


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--pairs", type=int, help="how many [mini: 640, vit_b32: 96]")
    args = parser.parse_args()
    model, data = load(args.size, args.device), task()
    pairs = data.retain.select(range(args.pairs or PAIRS[args.size]))
    weights = sum(w.nbytes for w in model.weights.values())
    model.encode("vision", pixel := ready(model, pairs.select(range(2)))[0][0])  # the trial of the chains, and warm
    model.encode("text", model.tokenize(["warm"]))
    del pixel

    def stage() -> dict[str, Tensor]:
        return gradient_sum(model, pairs, loss="contrastive", batch_size=BATCH, seed=0, precision=args.precision)["sum"]  # type: ignore[return-value]

    batches = ready(model, pairs)
    bare = {"padded": False, "limit": True}
    found, took = {}, {}
    for turn in range(3):  # in turns, so that a slow spell of the machine falls on all; the best of each counts
        for name, cut in bare.items():
            found[name], this = measure(
                lambda cut=cut: bare_loop(model, batches, contrastive, cut=cut, precision=args.precision), args.device
            )  # type: ignore[misc]
            took[name] = min(took.get(name, this), this, key=lambda m: m.seconds) if turn else this
        found["muwa"], this = measure(stage, args.device)
        took["muwa"] = min(took.get("muwa", this), this, key=lambda m: m.seconds) if turn else this
        if turn == 0:
            apart = {name: difference(found["muwa"], found[name]) for name in bare}
        found.clear()
        torch.cuda.empty_cache() if args.device != "cpu" else None
    ratios = {name: took[name].seconds / took["muwa"].seconds for name in bare}
    memory = (weights + took["muwa"].peak) / (weights + took["limit"].peak)
    rows = [
        [name, f"{m.seconds:.2f}", f"{len(pairs) / m.seconds:,.1f}", f"{m.seconds / took['muwa'].seconds:.2f}",
         size_of(weights + m.peak), f"{apart[name]:.1e}" if name in apart else ""]
        for name, m in took.items()
    ]  # fmt: skip
    show(
        f"gradients, {args.size}, {args.precision}: {len(pairs)} pairs ({machine(args.device)})",
        ["", "seconds", "pairs/s", "x muwa", "memory, weights too", "gradient differs by"], rows,
        [f"memory of muwa / that of the bare loop at cut padding: {memory:.2f}; one gradient is {size_of(weights)}.",
         f"floor: {took['limit'].seconds:.2f} s, the bare loop at cut padding. Best of three, taken in turns."],
    )  # fmt: skip
    write(args.json, {"bench": "gradients", "size": args.size, "precision": args.precision, "machine": machine(args.device),
                      "ratios": {**ratios, "memory": memory}, "difference": apart,
                      "seconds": {name: m.seconds for name, m in took.items()}, "pairs": len(pairs),
                      "peak": {name: m.peak for name, m in took.items()}, "weights": weights})  # fmt: skip


if __name__ == "__main__":
    main()

"""Layer search: muwa against full evaluation of every step.

    python -m bench.search                       # the miniature, under two minutes
    python -m bench.search --size vit_b32        # ViT-B-32, random weights; about 15 minutes on two cores

100 people x 4 pictures among 1,000 names, 200 pictures x 100 objects with 7 prompts each; ten steps a layer. The reference
(`bench/reference.py`) is timed on `--reference-steps` steps and counted for ten, since each costs the same; at batch 1, as
the release runs, on a twentieth of pictures and prompts, counted for all.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial

import torch

from bench.common import Measured, arguments, flops_a_second, load, machine, measure, shapes, show, size_of, task, write
from bench.reference import Reference, Step, choose
from muwa.gradients.mean import gradient_sum
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.steps import StepEvaluator
from muwa.layer_search.steps import choose as choose_ours
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Layer

STEPS = 10
FEW = 0.05  # the share of pictures and prompts that the reference at batch 1 is timed on
LAYERS = {  # the paper's figure edits blocks 9 and 11 of ViT-B-32; the first of each tower gives the ratios
    "mini": {"vision": (5, 3), "text": (3, 1)},
    "vit_b32": {"vision": (11, 9), "text": (11, 5)},
}
RATES = ("forget_top1", "forget_top5", "retain_top1", "utility_top1")


@dataclass(frozen=True)
class Row:
    """Seconds of one layer's search: muwa's, the least they could be, and the references'."""

    layer: str
    tower: str
    once: float
    steps: float
    floor_once: float
    floor_steps: float
    reference: float  # ten steps
    release: float  # ten steps
    peak: int
    reference_peak: int

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as long the references take: for ten steps, and with what is done once for this layer alone."""
        all_in = (self.once + self.steps) * STEPS / (STEPS + 1)  # the references evaluate the unedited model too
        return {"reference": self.reference / self.steps, "reference_all_in": self.reference / all_in,
                "release": self.release / self.steps, "release_all_in": self.release / all_in}  # fmt: skip


def ours(model: Clip, found: Gradients, data: Task, layer: Layer, device: str) -> tuple[StepEvaluator, Measured, Measured]:
    """(the trial with its trace, what is computed once a run, ten steps of the layer)."""
    make = partial(StepEvaluator, model, found, data.probe, [layer], Features(model), concept="x", criterion="top5", target=0.0)
    trial, once = measure(lambda: make(log=lambda event, row: None), device)

    def search() -> None:
        steps = bisection(0.1 * trial.ratio(layer), STEPS)
        step: float | None = next(steps)
        while step is not None:
            step = next_step(steps, trial(layer, step).feasible)

    return trial, once, measure(search, device)[1]


def agrees(trial: StepEvaluator, trace: list[Step]) -> bool:
    """Whether the reference took the same steps, saw the same accuracies and would choose the same one."""
    rows = trial.trace[: len(trace)]
    for row, other in zip(rows, trace, strict=True):
        pairs = [(getattr(row, key), getattr(other, key)) for key in ("step", *RATES)]
        far = any(abs(a - b) > 1e-9 * max(1.0, abs(a)) for a, b in pairs)
        if far or abs(row.forget_cosine - other.forget_cosine) > 1e-5:
            print(f"DIFFERS: {row}\n         {other}")
            return False
    counts = trial.counts
    chosen, _ = choose_ours(rows, rule="constrained", criterion="top5", tolerance=1.0, counts=counts)
    best = choose(trace, *counts)
    return (None if chosen is None else rows[chosen].step) == (
        None if best is None else trial.trace[trace.index(best)].step
    )


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--reference-steps", type=int, help="steps of the reference that are timed [mini: all, vit_b32: 2]"
    )
    parser.add_argument("--reference-batch", type=int, default=64)
    args = parser.parse_args()
    timed = args.reference_steps or (STEPS if args.size == "mini" else 2)
    model, data = load(args.size, args.device), task()
    pairs = data.forget[data.names[0]].select(range(16))
    total: dict[str, torch.Tensor] = gradient_sum(model, pairs, loss="cosine", batch_size=16, seed=0)["sum"]  # type: ignore[assignment]
    found, layers = Gradients(total, total, 16, 16, {}), {layer.name: layer for layer in model.layers("tensor")}
    probe, rate = data.probe, flops_a_second(args.device)
    prompts = [p for classes in (probe.forget.classes, probe.utility.classes) for p in classes.prompts()]
    counts = {"vision": len(probe.forget) + len(probe.retain) + len(probe.utility), "text": len(prompts)}
    form = shapes(model, model.tokenize(prompts))
    plain, release = Reference(model, probe, args.reference_batch), Reference(model, probe, 1)
    rows: list[Row] = []
    for tower, blocks in LAYERS[args.size].items():
        for i, block in enumerate(blocks):
            name = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{block}.attn.out_proj.weight"
            layer = layers[name]
            trial, once, steps = ours(model, found, data, layer, args.device)
            if not i or args.size == "mini":  # a full evaluation costs the same whichever layer was edited
                trace, full = measure(partial(plain.search, found.forget, [layer], timed), args.device)
                if not agrees(trial, trace):
                    raise SystemExit("the oracle differs")
                some = partial(release.evaluate, few=FEW)
                _, one = measure(partial(release.search, found.forget, [layer], 1, some), args.device)
            rows.append(Row(
                name, tower, once.seconds, steps.seconds,
                sum(counts[t] * form[t].flops() for t in counts) / rate,
                STEPS * counts[tower] * form[tower].after(block) / rate,
                full.seconds * STEPS / timed, one.seconds * STEPS / FEW, max(once.peak, steps.peak), full.peak,
            ))  # fmt: skip
    show(
        f"search, {args.size}: seconds for {STEPS} steps of one layer ({machine(args.device)})",
        ["layer", "once", "floor", "10 steps", "floor", "reference", "release", "x reference", "x ref. all in", "x release",
         "x rel. all in", "memory", "ref."],
        [[f"{row.tower} {row.layer.split('.', 3 if row.tower == 'vision' else 2)[-1].removesuffix('.weight')}",
          *(f"{value:,.2f}" for value in (row.once, row.floor_once, row.steps, row.floor_steps)),
          f"{row.reference:,.0f}", f"{row.release:,.0f}", *(f"{value:,.1f}" for value in row.ratios.values()),
          size_of(row.peak), size_of(row.reference_peak)] for row in rows],
        [f"{counts['vision']} pictures, {counts['text']} prompts. once: decoding, all embeddings of the unedited model, the "
         "inputs of the layer; shared by all layers of a run.",
         "all in: with what is done once, against 11 evaluations by the reference (it evaluates the unedited model too).",
         f"floor: the operations that must be done at this machine's own {rate / 1e9:,.0f} GFLOP/s (the best of five matrix "
         "products).",
         f"reference: {timed} of {STEPS} steps timed, batch {args.reference_batch}; release: batch 1, {FEW:.0%} timed.",
         "oracle: the same steps, accuracies and choice as the reference's."],
    )  # fmt: skip
    first = {row.tower: row.ratios for row in reversed(rows)}
    ratios = {tower: of["reference"] for tower, of in first.items()} | {
        f"{tower}_all_in": of["reference_all_in"] for tower, of in first.items()
    }
    ratios |= {key: min(of[key] for of in first.values()) for key in ("release", "release_all_in")}
    write(args.json, {"bench": "search", "size": args.size, "machine": machine(args.device), "ratios": ratios,
                      "rows": [asdict(row) for row in rows], "flops_a_second": rate})  # fmt: skip


if __name__ == "__main__":
    main()

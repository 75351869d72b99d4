"""The speed of the layer search, against full evaluation of every step.

    python -m bench.search                       # the miniature, under two minutes
    python -m bench.search --size vit_b32        # ViT-B-32 with random weights; about 15 minutes on two cores

The probe split has 100 people x 4 images among 1,000 names, and 200 images of 100 objects with 7 prompts
each. Ten steps are tried on a layer. The reference (`bench/reference.py`) is timed on `--reference-steps`
steps, and its time is scaled to ten, as all steps cost the same. At batch 1, as the release runs, it is timed
on a twentieth of the images and prompts, and its time is scaled to all.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from bench import entry
from bench.common import (
    Measured,
    Shape,
    arguments,
    flops_a_second,
    load,
    machine,
    measure,
    shapes,
    show,
    size_of,
    task,
    write,
)
from bench.reference import Reference, Step
from bench.reference import choose as choose_plainly
from muwa.gradients.base import BatchLoss
from muwa.gradients.mean import gradient_sum
from muwa.layer_search.bisection import bisection, next_step
from muwa.layer_search.choice import Acceptance, choose
from muwa.layer_search.evaluators.zero_shot import StepEvaluator
from muwa.models.clip.embeddings import Features
from muwa.models.clip.model import Clip
from muwa.run import Run
from muwa.types.data import Split
from muwa.types.gradients import Gradients
from muwa.types.search import Layer

STEPS = 10
PART = 0.05  # of the images and prompts, which the reference at batch 1 is timed on
LAYERS = {  # blocks; the paper's figure edits 9 and 11 of ViT-B-32. The first of each tower gives the ratios
    "mini": {"vision": (5, 3), "text": (3, 1)},
    "vit_b32": {"vision": (11, 9), "text": (11, 5)},
    "vit_l14": {"vision": (23, 18), "text": (11, 5)},
}
RATES = ("forget_top1", "forget_top5", "retain_top1", "utility_top1")
ACCEPTANCE = Acceptance("constrained", "top5", 0.0, 1.0, stranger=0.0)
COLUMNS = [
    "layer", "once", "floor", "10 steps", "floor", "reference", "release",
    "x reference", "x ref. all in", "x release", "x rel. all in", "memory", "ref.",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Seconds of the search of one layer, and peak bytes.

    Args:
        once: What muwa computes once a run.
        steps: Ten steps of muwa.
        floor_once, floor_steps: The least that both could take on this machine.
        reference, release: Ten steps of the references.
    """

    layer: str
    tower: str
    once: float
    steps: float
    floor_once: float
    floor_steps: float
    reference: float
    release: float
    peak: int
    reference_peak: int

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as long the references take for ten steps. "all_in" counts muwa's first part too.

        For "all_in" the references' time is that of eleven evaluations: they evaluate the unedited model as
        well.
        """
        all_in = (self.once + self.steps) * STEPS / (STEPS + 1)
        return {
            "reference": self.reference / self.steps,
            "reference_all_in": self.reference / all_in,
            "release": self.release / self.steps,
            "release_all_in": self.release / all_in,
        }


@dataclass(frozen=True)
class Bench:
    """What all layers are measured with.

    Args:
        counts: Tower -> inputs of the probe split.
        shapes: Tower -> its shape.
        speed: Floating-point operations a second of this machine.
        timed: Steps of the reference that are timed.
    """

    model: Clip
    gradients: Gradients
    probe: Split
    counts: dict[str, int]
    shapes: dict[str, Shape]
    speed: float
    device: str
    timed: int
    plain: Reference
    release: Reference

    def floor(self, tower: str, block: int) -> tuple[float, float]:
        """The least seconds for what is computed once, and for ten steps on a layer of `block`."""
        once = sum(self.counts[t] * self.shapes[t].flops() for t in self.counts) / self.speed
        return once, STEPS * self.counts[tower] * self.shapes[tower].after(block) / self.speed


def ours(bench: Bench, layer: Layer) -> tuple[StepEvaluator, Measured, Measured]:
    """(the evaluator with its trace, what is computed once a run, ten steps of the layer)."""
    make = partial(StepEvaluator, Features(bench.model, Run()), bench.gradients, bench.probe, [layer])
    evaluator, once = measure(lambda: make(concept="x", acceptance=ACCEPTANCE), bench.device)

    def search() -> None:
        steps = bisection(0.1 * evaluator.ratio(layer), STEPS)
        step: float | None = next(steps)
        while step is not None:
            step = next_step(steps, evaluator(layer, step).feasible)

    return evaluator, once, measure(search, bench.device)[1]


def agrees(evaluator: StepEvaluator, trace: Sequence[Step], probe: Split) -> bool:
    """Whether the reference took the same steps, saw the same accuracies and would choose the same step."""
    rows = evaluator.trace[: len(trace)]
    for row, other in zip(rows, trace, strict=True):
        pairs = [(row.metrics[key], getattr(other.rates, key)) for key in RATES] + [(row.step, other.step)]
        far = any(abs(a - b) > 1e-9 * max(1.0, abs(a)) for a, b in pairs)
        if far or abs(row.closeness - other.rates.forget_cosine) > 1e-5:
            print(f"DIFFERS: {row}\n         {other}")
            return False
    chosen, _ = choose(rows, ACCEPTANCE)
    best = choose_plainly(trace, len(probe.retain), len(probe.utility))
    return chosen == (None if best is None else list(trace).index(best))


def measured(bench: Bench, size: str) -> list[Row]:
    """Every layer of `LAYERS`.

    Raises:
        SystemExit: The reference sees other rates or chooses another step.
    """
    layers = {layer.name: layer for layer in bench.model.layers("tensor")}
    rows: list[Row] = []
    for tower, blocks in LAYERS[size].items():
        for i, block in enumerate(blocks):
            prefix = "visual." if tower == "vision" else ""
            layer = layers[f"{prefix}transformer.resblocks.{block}.attn.out_proj.weight"]
            evaluator, once, steps = ours(bench, layer)
            if not i or size == "mini":  # a full evaluation costs the same for every layer
                search = partial(bench.plain.search, bench.gradients.forget, [layer], bench.timed)
                trace, full = measure(search, bench.device)
                if not agrees(evaluator, trace, bench.probe):
                    raise SystemExit("the oracle differs")
                few = partial(bench.release.evaluate, part=PART)
                search = partial(bench.release.search, bench.gradients.forget, [layer], 1, few)
                one = measure(search, bench.device)[1]
            rows.append(
                Row(
                    layer.name,
                    tower,
                    once.seconds,
                    steps.seconds,
                    *bench.floor(tower, block),
                    reference=full.seconds * STEPS / bench.timed,
                    release=one.seconds * STEPS / PART,
                    peak=max(once.peak, steps.peak),
                    reference_peak=full.peak,
                )
            )
    return rows


def set_up(args: argparse.Namespace) -> Bench:
    """The model, its gradient, the probe split and the references."""
    timed = args.reference_steps or (STEPS if args.size == "mini" else 2)
    model, data = load(args.size, args.device), task()
    pairs = data.forget[data.names[0]].select(range(16))
    total = gradient_sum(model, pairs, BatchLoss("cosine", 16, 0, "fp32"), run=Run())["sum"]
    probe = data.probe
    prompts = [p for classes in (probe.forget.classes, probe.utility.classes) for p in classes.prompts()]
    images = len(probe.forget) + len(probe.retain) + len(probe.utility)
    return Bench(
        model=model,
        gradients=Gradients(total, total, 16, 16, {}),
        probe=probe,
        counts={"vision": images, "text": len(prompts)},
        shapes=shapes(model, model.tokenize(prompts)),
        speed=flops_a_second(args.device),
        device=args.device,
        timed=timed,
        plain=Reference(model, probe, args.reference_batch),
        release=Reference(model, probe, 1),
    )


def show_table(bench: Bench, rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print the table and how to read it."""
    cells = []
    for row in rows:
        name = row.layer.split(".", 3 if row.tower == "vision" else 2)[-1].removesuffix(".weight")
        seconds = (row.once, row.floor_once, row.steps, row.floor_steps)
        cells.append(
            [
                f"{row.tower} {name}",
                *(f"{value:,.2f}" for value in seconds),
                f"{row.reference:,.0f}",
                f"{row.release:,.0f}",
                *(f"{value:,.1f}" for value in row.ratios.values()),
                size_of(row.peak),
                size_of(row.reference_peak),
            ]
        )
    notes = [
        f"{bench.counts['vision']} images, {bench.counts['text']} prompts. once: decoding, all embeddings of "
        "the unedited model, the inputs of the layer; all layers of a run share it.",
        "all in: with what is computed once, against 11 evaluations by the reference (1 unedited).",
        f"floor: the operations that must be done, at {bench.speed / 1e9:,.0f} GFLOP/s: best of five matrix "
        "products.",
        f"reference: {bench.timed} of {STEPS} steps timed, batch {args.reference_batch}; release: batch 1, "
        f"{PART:.0%} timed.",
        "oracle: the same steps, accuracies and choice as the reference's.",
    ]
    title = f"search, {args.size}: seconds for {STEPS} steps of one layer ({machine(args.device)})"
    show(title, COLUMNS, cells, notes)


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--reference-steps",
        type=entry.count,
        help="steps of the reference that are timed [mini: all, others: 2]",
    )
    parser.add_argument("--reference-batch", type=entry.count, default=64)
    args = parser.parse_args()
    bench = set_up(args)
    rows = measured(bench, args.size)
    show_table(bench, rows, args)
    first = {row.tower: row.ratios for row in reversed(rows)}
    ratios = {tower: of["reference"] for tower, of in first.items()}
    ratios |= {f"{tower}_all_in": of["reference_all_in"] for tower, of in first.items()}
    ratios |= {key: min(of[key] for of in first.values()) for key in ("release", "release_all_in")}
    about = {"bench": "search", "size": args.size, "machine": machine(args.device)}
    figures = {"ratios": ratios, "rows": [asdict(row) for row in rows], "flops_a_second": bench.speed}
    write(args.json, {**about, **figures})


if __name__ == "__main__":
    entry.run("bench.search", main)

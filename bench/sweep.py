"""A sweep over identities of the miniature with an empty cache: what each identity costs, and what all share.

    python -m bench.sweep                           # 20 identities, about 4 minutes on two cores
    python -m bench.sweep --identities 5

The reference is a sweep without a shared cache: it computes the retain gradient, the decoded images and the
features of the unedited model again for every identity. Its time follows from the seconds that these took in
the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import muwa
from bench import entry
from bench.common import ROOT, arguments, machine, show, write
from muwa.miniature.population import people

OWN = ("gradients/forget", "gradients/mentions", "search")  # stages that each identity must compute
STAGES = ("data", "gradients/retain", *OWN, "features", "total")


@dataclass
class Sweep:
    """What a sweep took.

    Attributes:
        each: For each identity, stage -> seconds.
        events: (stage, "hit" or "miss") -> how often.
        forgotten: Identities that are in no top 5 after the edit.
        seconds: Of the whole sweep.
    """

    each: list[dict[str, float]] = field(default_factory=list)
    events: Counter[tuple[str, str]] = field(default_factory=Counter)
    forgotten: int = 0
    seconds: float = 0.0

    @property
    def bound(self) -> float:
        """Seconds of one retain gradient and of what each identity must compute."""
        return self.each[0].get("gradients/retain", 0.0) + sum(
            row.get(stage, 0.0) for row in self.each for stage in OWN
        )

    @property
    def unshared(self) -> float:
        """Seconds if every identity took as long as the first."""
        return len(self.each) * self.each[0]["total"]


def swept(names: Sequence[str], device: str, precision: str) -> Sweep:
    """Forget each identity with SLUG, evaluate before and after, with one cache for all."""
    data, model = muwa.load_miniature(str(ROOT)), muwa.load_clip(device=device)
    sweep = Sweep()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for name in names:
            begun, store = time.perf_counter(), muwa.Store(Path(folder))
            run = muwa.Run(store=store)
            task = muwa.celeba(data, identity=name)
            read = time.perf_counter() - begun
            edit = muwa.slug(model, task, run, precision=precision)
            _, after = (muwa.evaluate(one, task, run) for one in (model, model.edited(edit)))
            sweep.forgotten += after["forget/top5"].value == 0
            sweep.each.append({"data": read, **store.seconds, "total": time.perf_counter() - begun})
            sweep.events.update(store.events.items())
            print(f"{name:22} {sweep.each[-1]['total']:6.1f} s", flush=True)
        sweep.seconds = time.perf_counter() - started
    return sweep


def show_table(sweep: Sweep, device: str) -> None:
    """Print the table and how to read it."""
    count, first = len(sweep.each), sweep.each[0]
    later = {
        stage: sum(row.get(stage, 0.0) for row in sweep.each[1:]) / max(1, count - 1) for stage in STAGES
    }
    rows = (("first", first), ("each later", later))
    passes = sweep.events["gradients/retain", "miss"]
    notes = [
        f"{sweep.seconds:.1f} s in all, {sweep.seconds / count:.1f} s an identity; the retain gradient was "
        f"computed {passes} times; {sweep.forgotten} of {count} reach forget/top5 = 0.",
        f"floor: one retain gradient + {count} x (forget gradient + pairs that mention the name + search) = "
        f"{sweep.bound:.1f} s; data and eval are the rest.",
        f"nothing shared: {count} x {first['total']:.1f} s = {sweep.unshared:.0f} s, "
        f"{sweep.unshared / sweep.seconds:.1f} times as long.",
    ]
    show(
        f"sweep: {count} identities of the miniature, empty cache ({machine(device)})",
        ["seconds", *STAGES],
        [[label, *(f"{row.get(stage, 0.0):.2f}" for stage in STAGES)] for label, row in rows],
        notes,
    )


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--identities", type=entry.count, default=20)
    args = parser.parse_args()
    if args.size != "mini":
        parser.error("--size vit_b32: random weights forget nothing; the sweep is of the miniature")
    names = [person.name for person in people()[: args.identities]]
    sweep = swept(names, args.device, args.precision)
    show_table(sweep, args.device)
    figures = {
        "bench": "sweep",
        "machine": machine(args.device),
        "identities": len(names),
        "seconds": sweep.seconds,
        "each": sweep.each,
        "retain_passes": sweep.events["gradients/retain", "miss"],
        "bound": sweep.bound,
        "ratios": {"unshared": sweep.unshared / sweep.seconds, "bound": sweep.seconds / sweep.bound},
    }
    write(args.json, figures)


if __name__ == "__main__":
    entry.run("bench.sweep", main)

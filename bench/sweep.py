"""A sweep over identities of the miniature from a cold cache: what is shared, and what each identity costs.

    python -m bench.sweep                           # 20 identities, about 4 minutes on two cores
    python -m bench.sweep --identities 5

The reference is what a sweep without a shared cache does: the retain pass, the decoding and the unedited model's features
again for every identity; counted from the seconds that these took in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import muwa
from bench.common import ROOT, arguments, machine, show, write
from muwa.miniature.population import people


def main() -> None:
    """Run the bench."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--identities", type=int, default=20)
    args = parser.parse_args()
    if args.size != "mini":
        parser.error("--size vit_b32: random weights forget nothing; the sweep is of the miniature")
    data, model = muwa.load_miniature(str(ROOT)), muwa.load_clip(device=args.device)
    names = [person.name for person in people()[: args.identities]]
    each: list[dict[str, float]] = []
    events: Counter[tuple[str, str]] = Counter()
    forgotten = 0
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for name in names:
            begun, store = time.perf_counter(), muwa.Store(Path(folder))
            task = muwa.celeba(data, identity=name)
            read = time.perf_counter() - begun
            edit = muwa.slug(model, task, store=store, precision=args.precision)
            _, after = (muwa.evaluate(m, task, store=store) for m in (model, model.edited(edit)))
            forgotten += after["forget/top5"].value == 0
            each.append({"data": read, **store.seconds, "total": time.perf_counter() - begun})
            events.update(store.events.items())
            print(f"{name:22} {each[-1]['total']:6.1f} s", flush=True)
        total = time.perf_counter() - started
    stages = ["data", "gradients/retain", "gradients/forget", "gradients/mentions", "search", "features", "total"]
    later = {stage: sum(row.get(stage, 0.0) for row in each[1:]) / max(1, len(each) - 1) for stage in stages}
    first = {stage: each[0].get(stage, 0.0) for stage in stages}
    retain = first["gradients/retain"]
    own = sum(row.get(s, 0.0) for row in each for s in ("gradients/forget", "gradients/mentions", "search"))
    bound = retain + own
    passes = events["gradients/retain", "miss"]
    unshared = len(names) * first["total"]
    show(
        f"sweep: {len(names)} identities of the miniature, cold cache ({machine(args.device)})",
        ["seconds", *stages],
        [[label, *(f"{row[s]:.2f}" for s in stages)] for label, row in (("first", first), ("each later", later))],
        [f"{total:.1f} s in all, {total / len(names):.1f} s an identity; retain passes: {passes}; "
         f"{forgotten} of {len(names)} reach forget/top5 = 0.",
         f"floor: one retain pass + {len(names)} x (forget pass + pairs that mention the name + search) = {bound:.1f} s; "
         f"data and eval are the rest.",
         f"nothing shared: {len(names)} x {first['total']:.1f} s = {unshared:.0f} s, {unshared / total:.1f} times as long."],
    )  # fmt: skip
    write(args.json, {"bench": "sweep", "machine": machine(args.device), "identities": len(names), "seconds": total,
                      "each": each, "retain_passes": passes, "bound": bound,
                      "ratios": {"unshared": unshared / total, "bound": total / bound}})  # fmt: skip


if __name__ == "__main__":
    main()

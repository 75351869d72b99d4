"""What waiting threads cost on a shared machine: training steps a second, alone and beside other processes.

    python -m bench.neighbours                                  # 3 minutes on two cores
    python -m bench.neighbours --spins 1000 10000 100000        # other lengths of waiting

The work is forward and backward passes of a small transformer with as many threads as the process may use.
Each way of waiting is measured alone, beside one process that computes without pause on one core, and as two
runs side by side (each of them). The ways take turns, `--rounds` times. Ratios are to torch's own way of
waiting in the same place. Nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from bench import entry
from bench.common import machine, show
from muwa.runtime import threads

PLACES = ("alone", "beside a busy process", "two side by side")
BUSY = "while True: pass"
OWN = "torch's own"


def work(seconds: float) -> float:
    """Forward and backward passes a second of a transformer of the miniature's size."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(min(torch.get_num_threads(), threads.available()))
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), torch.randn(64, 26, 128)
    for _ in range(3):
        model(x).sum().backward()
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        model(x).sum().backward()
        steps += 1
    return steps / (time.perf_counter() - started)


def steps_a_second(way: Mapping[str, str], place: str, seconds: float) -> float:
    """Steps a second of one worker: with two side by side, the mean of both."""
    clean = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    command = [sys.executable, "-m", "bench.neighbours", "--work", str(seconds)]
    count = 2 if place == "two side by side" else 1
    with _busy() if place == "beside a busy process" else _nothing():
        runs = [
            subprocess.Popen(command, env={**clean, **way}, stdout=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        return statistics.mean(float(run.communicate()[0]) for run in runs)


@contextmanager
def _busy() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def main() -> None:
    """Command line: measure all ways in all places and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--spins", type=entry.count, nargs="*", default=[], help="further values of GOMP_SPINCOUNT"
    )
    parser.add_argument("--rounds", type=entry.count, default=3)
    parser.add_argument("--seconds", type=entry.positive, default=4.0, help="of each measurement")
    parser.add_argument("--work", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(work(args.work))
        return
    ours: dict[str, str] = {}
    threads.wait_briefly(ours)
    ways: dict[str, dict[str, str]] = {OWN: {}, "muwa's": ours, "passive": {"OMP_WAIT_POLICY": "passive"}}
    ways |= {f"{spins} spins": {"GOMP_SPINCOUNT": str(spins)} for spins in args.spins}
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for place in PLACES:
            for name, way in ways.items():
                found.setdefault((name, place), []).append(steps_a_second(way, place, args.seconds))
    rates = {key: statistics.median(values) for key, values in found.items()}
    rows = [[name, *(_cell(rates[name, place], rates[OWN, place]) for place in PLACES)] for name in ways]
    show("Training steps a second", ["waiting", *PLACES], rows, [f"{machine('cpu')}; x: to torch's own way"])


def _cell(rate: float, reference: float) -> str:
    return f"{rate:.1f} ({rate / reference:.2f}x)"


if __name__ == "__main__":
    entry.run("bench.neighbours", main)

"""One number of an evaluation, with what is needed to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation: its value, the sample count, a 95 % interval where one is defined, how to read it."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    better: str = "higher"  # "higher" | "lower" | "neither"
    reads: str = ""

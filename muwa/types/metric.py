"""One number of an evaluation, with everything that is needed to read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

RATE = "rate"  # the unit of a number in [0, 1], which reports show in per cent


@dataclass(frozen=True)
class Reading:
    """How a metric is to be read. Reports, sweeps and tables go by these fields, never by a metric's name.

    Args:
        text: One sentence: what was counted or measured.
        better: "higher" | "lower" | "neither".
        unit: "rate" (in [0, 1]), or what else it is: "cosine", "auc", "distance", "score", "steps", ...
        role: What the metric is about: "forgotten" (how far the forgotten is still there), "kept" (what was to stay),
            "attack" (the forgotten, asked for in another way), "detail" (a clause after the headline); "" is none of these.
        in_objective: Whether the objective of a sweep counts it. Its role is then "forgotten" or "kept".
        label: The words of the report's verdict. Forgotten: "<names> is no longer <label>". Kept: "<label>: 98 % -> 97 %".
            Attack: "Asked otherwise (<label>): ...". Detail: "12 % <label>". "" gives no verdict.
        counted: What `n` counts, for the verdict: "held-out images", "generated images", ...
        gone_at: The forgotten counts as forgotten at this rate or below.
        section: The heading of the report's table under which the metric stands; "" is the first, without a heading.
        features: Whose features a distance is measured on ("CLIP", "Inception"); "" where it is on none.
    """

    text: str = ""
    better: str = "higher"
    unit: str = RATE
    role: str = ""
    in_objective: bool = False
    label: str = ""
    counted: str = "held-out images"
    gone_at: float = 0.0
    section: str = ""
    features: str = ""


@dataclass(frozen=True)
class Metric:
    """A value, the number of samples behind it, its 95 % interval where one is defined, and how to read it.

    `capped` says that the value was cut off at the most that was tried: it is then a lower bound.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    reading: Reading = field(default_factory=Reading)
    capped: bool = False

    def record(self) -> dict[str, Any]:
        """Plain values, as results.json has them: the fields of the reading stand beside those of the metric.

        >>> sorted(Metric(0.5, 8, reading=Reading("accuracy")).record())[:4]
        ['better', 'capped', 'counted', 'features']
        """
        about = asdict(self.reading)
        values = {
            "value": self.value,
            "n": self.n,
            "low": self.low,
            "high": self.high,
            "better": about.pop("better"),
        }
        return {**values, "reads": about.pop("text"), **about, "capped": self.capped}

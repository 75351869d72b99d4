"""One number of an evaluation, with everything that is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from muwa.types.short import short_repr

RATE = "rate"  # the unit of a number in [0, 1], which reports show in per cent


@dataclass(frozen=True)
class Reading:
    """How to read a metric. Reports, sweeps and tables use these fields; they never parse a metric's name.

    The target is what a task names to forget.

    Args:
        text: One sentence: what was counted or measured.
        better: "higher" | "lower" | "neither".
        unit: "rate" (in [0, 1]), or another unit: "cosine", "auc", "distance", "score", "steps", ...
        role: What the metric is about:
            "forgotten": whether the target is still recognised;
            "kept": whether something else is still recognised, which must not be lost;
            "attack": whether the target is recognised when it is asked for in another way;
            "detail": more about the target, for a clause after its verdict;
            "": none of these.
        in_objective: Whether the objective of a sweep counts the metric. Its role is then "forgotten" or
            "kept".
        label: The words of the report's verdict, by role; "" gives no verdict.
            "forgotten": "NAMES is no longer LABEL: ...";
            "kept": "LABEL: 98 % -> 97 %";
            "attack": "... (LABEL): 100 % -> 0 %";
            "detail": "12 % LABEL".
        counted: What `n` counts, for the verdict: "held-out images", "generated images", ...
        gone_at: The target counts as forgotten if it is still recognised at this rate or below.
        section: The heading above the metric in the report's table; "" stands first, without a heading.
        features: The model whose features a distance compares ("CLIP", "Inception"); "" for other metrics.
        caveat: What a verdict "is no longer ..." does not show: a note that follows it. It is not in
            results.json.
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
    caveat: str = ""


@dataclass(frozen=True)
class NameRate:
    """The rate of one name, and the number of samples behind it."""

    value: float
    n: int


@dataclass(frozen=True)
class Sample:
    """One generated image of a metric, and what was found in it.

    Args:
        prompt, seed, guidance: What the image was generated from; guidance None is the model's own.
        concept: What was looked for; "": what the prompt says, which names no concept.
        score: How clearly it was found; above 0 where it counted.
        hit: Whether it counted.
    """

    prompt: str
    seed: int
    guidance: float | None
    concept: str
    score: float
    hit: bool


@dataclass(frozen=True)
class Outcomes:
    """The single samples behind a rate, in an order that does not depend on the model.

    Args:
        hits: (n,) the rate of each sample, in [0, 1]: 1 is a hit, 0 a miss.
        groups: (n,) what each sample is about. The rate is then the mean over groups of each group's mean;
            empty: the mean over samples.
    """

    hits: tuple[float, ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """How an edit changed a rate.

    Args:
        value: After minus before, in [-1, 1].
        low, high: Its 95 % interval; None if none is defined.
        paired: Whether the interval compares the same samples before and after. If not, it treats the two
            rates as independent, which makes it wider.
    """

    value: float
    low: float | None
    high: float | None
    paired: bool


@dataclass(frozen=True)
class Metric:
    """A measured value and how to read it.

    Args:
        value: The value, in `reading.unit`.
        n: The number of samples behind it.
        low, high: Its 95 % interval; None if none is defined.
        reading: What the value means.
        capped: Whether measuring stopped at a limit (of steps, say). The value is then a lower bound.
        by_name: Name -> its own rate, for a rate over the images of several names; empty for other metrics.
        guessed: Of a rate of role "forgotten": which names were recognised in the samples, the right one
            among them, and how often, the most frequent first. The key "" counts samples without any name; a
            short answer without one stands for itself, in quotation marks. Empty where it was not counted.
        samples: Where they are kept: the samples behind it, in an order that does not depend on the model.
        outcomes: The single hits and misses behind a rate, for the change by an edit; None where they were
            not kept. They are not in results.json and do not count when metrics are compared.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    reading: Reading = field(default_factory=Reading)
    capped: bool = False
    by_name: Mapping[str, NameRate] = field(default_factory=dict)
    guessed: Mapping[str, int] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    outcomes: Outcomes | None = field(default=None, compare=False, repr=False)

    __repr__ = short_repr

    @property
    def still_recognised(self) -> float:
        """The rate at which the target is still recognised, for a rate of role "forgotten" or "attack"."""
        return still_recognised(self.value, self.reading.better)

    def record(self) -> dict[str, Any]:
        """Plain values for results.json: the fields of the metric and of its reading, in one mapping.

        >>> ", ".join(sorted(Metric(0.5, 8, reading=Reading("accuracy")).record())[:4])
        'better, by_name, capped, counted'
        """
        about = asdict(self.reading)
        del about["caveat"]
        values = {
            "value": self.value,
            "n": self.n,
            "low": self.low,
            "high": self.high,
            "better": about.pop("better"),
        }
        names = {name: asdict(rate) for name, rate in self.by_name.items()}
        return {
            **values,
            "reads": about.pop("text"),
            **about,
            "capped": self.capped,
            "by_name": names,
            "guessed": dict(self.guessed),
        }


def still_recognised(value: float, better: str) -> float:
    """The rate at which the target is still recognised.

    Args:
        value: A rate in [0, 1]. If lower is better, it counts where the target is recognised; if higher is
            better, where it is not.
        better: `Reading.better`.

    >>> still_recognised(0.25, "lower"), still_recognised(0.25, "higher")
    (0.25, 0.75)
    """
    return 1 - value if better == "higher" else value

"""The verdict on a run: what was shown, what was not shown, and what was shown to have failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# What a finding is. The values are also the CSS classes of the report.
GOOD = "good"  # shown
UNSURE = "unsure"  # not shown: too few samples, or not measured
BAD = "bad"  # shown not to be so
NOTE = "note"  # neither: a remark

_ORDER = (NOTE, GOOD, UNSURE, BAD)  # from the mildest
_WORDS = {GOOD: "shown", UNSURE: "not shown", BAD: "failed", NOTE: "note", "": "not judged"}
_WORDS_OF_ROLE = {  # role of a metric -> kind -> the word, where it is another than in `_WORDS`
    "forgotten": {GOOD: "forgotten", BAD: "still recognised"},
    "earlier": {GOOD: "stays forgotten", BAD: "recognised again"},
    "kept": {GOOD: "kept", BAD: "not kept"},
    "attack": {GOOD: "withstood", BAD: "brought back"},
}


def word(kind: str, role: str = "") -> str:
    """A verdict in a word or two: the same on the console, on the pages and in the card.

    Args:
        kind: `GOOD`, `UNSURE`, `BAD`, `NOTE`, or "" for what was not judged.
        role: `Reading.role` of the metric that was judged; "" for a run as a whole, a warning or a remark.

    >>> word(GOOD), word(GOOD, "kept"), word(UNSURE, "kept"), word("", "detail")
    ('shown', 'kept', 'not shown', 'not judged')
    """
    return _WORDS_OF_ROLE.get(role, {}).get(kind, _WORDS[kind])


@dataclass(frozen=True)
class Rules:
    """The thresholds of a verdict. Every interval is one of 95 %.

    Args:
        kept_points: What was to be kept may fall by this many percentage points. It counts as kept if the
            interval of its change lies above the loss of that many points, and as lost if it lies below.
        forget_high: The target counts as forgotten only if the interval of the rate at which it is still
            recognised ends at this rate or below, in [0, 1]. It says how few samples are too few.
    """

    kept_points: float
    forget_high: float


@dataclass(frozen=True)
class Finding:
    """One sentence of a verdict.

    Args:
        kind: `GOOD`, `UNSURE`, `BAD` or `NOTE`.
        metric: The metric that it is about; "" for a warning.
    """

    kind: str
    text: str
    metric: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a run.

    Args:
        kind: The outcome as a whole: `GOOD` only if every part was shown.
        headline: The outcome in one or two sentences, with n and the interval.
        findings: The parts, one sentence each; the one that the headline tells is not repeated.
        rules: The thresholds.
        kinds: Metric -> the kind of what was found, for each metric that was judged.
    """

    kind: str
    headline: str
    findings: tuple[Finding, ...]
    rules: Rules
    kinds: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        """Plain values for results.json."""
        return {**asdict(self), "findings": [asdict(one) for one in self.findings]}


def worst(kinds: Mapping[str, str] | tuple[str, ...]) -> str:
    """The worst of some kinds; `NOTE` if there are none.

    >>> worst(("good", "bad", "unsure")), worst(())
    ('bad', 'note')
    """
    values = kinds.values() if isinstance(kinds, Mapping) else kinds
    return max(values, key=_ORDER.index, default=NOTE)

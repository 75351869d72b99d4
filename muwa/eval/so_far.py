"""Is everything still forgotten that was to be forgotten so far? The same rates for all of these names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from muwa.types.data import LabelledImages, Split
from muwa.types.metric import Metric, Reading

SECTION = "Forgotten so far"


def so_far(
    what: str, reading: Reading, rate: Callable[[frozenset[str], Reading], Metric]
) -> dict[str, Metric]:
    """`earlier/<what>` and `so_far/<what>`: a rate of the target, for earlier names and for all together.

    Args:
        what: What is measured: "top1", "ua", "answered".
        reading: How the rate of the names to forget now is read.
        rate: Roles ("forget", "earlier") and a reading -> the rate over them, with that of each name.
    """
    earlier = replace(
        reading,
        text=f"{reading.text} (target: the names that were forgotten before)",
        role="earlier",
        section=SECTION,
    )
    every = replace(
        earlier,
        text=f"{reading.text} (target: all names that were to be forgotten so far)",
        role="",
        in_objective=False,
        label="",
    )
    return {
        f"earlier/{what}": rate(frozenset({"earlier"}), earlier),
        f"so_far/{what}": rate(frozenset({"forget", "earlier"}), every),
    }


def sets_with(split: Split, roles: frozenset[str]) -> tuple[LabelledImages, ...]:
    """The image sets of a split with these roles."""
    return (*([split.forget] if "forget" in roles else []), *(split.earlier if "earlier" in roles else ()))

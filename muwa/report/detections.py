"""What a detector found in images of the same prompts and seeds, before and after the edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from muwa.eval.statistics import paired_change, wilson
from muwa.types.metric import Metric, Sample

Pairs = Sequence[tuple[Sample, Sample]]  # (before, after) of the same prompt, seed and concept


def sample_rows(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row for each sample of each metric that has some: what it was, and its score before and after.

    Returns:
        [{"metric", "prompt", "seed", "guidance", "concept", "before", "after" (scores), "hit_before",
        "hit_after", "prompt_after"}]. The last differs where an attack found a prompt for the edited model.
    """
    return [
        {
            "metric": name,
            "prompt": one.prompt,
            "seed": one.seed,
            "guidance": one.guidance,
            "concept": one.concept,
            "before": one.score,
            "after": other.score,
            "hit_before": one.hit,
            "hit_after": other.hit,
            "prompt_after": other.prompt,
        }
        for name, pairs in _pairs(before, after).items()
        for one, other in pairs
    ]


def detections(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> list[dict[str, Any]]:
    """One row for each concept of each metric with samples: its rates, and the change over the same samples.

    The prompts that name no concept are one row, whose concept is "".

    Returns:
        [{"metric", "concept", "n", "before", "after" (rates), "before_low", "before_high", "after_low",
        "after_high", "change", "change_low", "change_high", "lost" (samples that counted only before), "new"
        (only after)}].
    """
    rows = []
    for name, pairs in _pairs(before, after).items():
        groups: dict[str, list[tuple[Sample, Sample]]] = {}
        for pair in pairs:
            groups.setdefault(pair[0].concept, []).append(pair)
        rows += [_row(name, concept, mine) for concept, mine in groups.items()]
    return rows


def _pairs(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> dict[str, Pairs]:
    """Metric -> its samples before, each with the same one after."""
    return {
        name: list(zip(metric.samples, after[name].samples, strict=True))
        for name, metric in before.items()
        if metric.samples
    }


def _row(name: str, concept: str, pairs: Pairs) -> dict[str, Any]:
    hits = [[one.hit for one in side] for side in zip(*pairs, strict=True)]
    n = len(pairs)
    (low, high), (after_low, after_high) = (wilson(sum(side), n) for side in hits)
    change, change_low, change_high = paired_change(*hits)
    return {
        "metric": name,
        "concept": concept,
        "n": n,
        "before": sum(hits[0]) / n,
        "before_low": low,
        "before_high": high,
        "after": sum(hits[1]) / n,
        "after_low": after_low,
        "after_high": after_high,
        "change": change,
        "change_low": change_low,
        "change_high": change_high,
        "lost": sum(one and not other for one, other in zip(*hits, strict=True)),
        "new": sum(other and not one for one, other in zip(*hits, strict=True)),
    }

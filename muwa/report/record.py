"""A finished run as plain values: the content of results.json (documented in docs/results_schema.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from muwa.eval.statistics import change_of
from muwa.report.detections import detections, sample_rows
from muwa.report.requests import request_rows
from muwa.report.verdicts import verdict
from muwa.types.data import Task
from muwa.types.edit import Edit
from muwa.types.example import Example
from muwa.types.metric import RATE, Metric
from muwa.types.report import Report
from muwa.types.search import Search

SCHEMA = 1


def results(report: Report) -> dict[str, Any]:
    """All keys of results.json, as plain values without NaN.

    Schema 1 fixes the keys and what they mean. Newer keys are added to them and need no new schema.
    """
    searches = report.edit.searches
    return {
        "schema": SCHEMA,
        "name": report.name,
        "objective": report.objective,
        "metrics": {"before": _metrics(report.before), "after": _metrics(report.after)},
        "edit": _edit(report.edit),
        "front": [row for search in searches for row in _front(search)],
        "scores": [
            {"concept": search.concept, "layer": name, **asdict(score)}
            for search in searches
            for name, score in search.scores.items()
        ],
        "trace": [{"concept": search.concept, **row.record()} for search in searches for row in search.trace],
        "search": [_search(search) for search in searches],
        "similarity": dict(report.similarity),
        "said": answers(report.examples),
        "changes": changes(report.before, report.after),
        "verdict": verdict(report).record(),
        "request": dict(report.request),
        "edited": dict(report.edited),
        "detections": detections(report.before, report.after),
        "samples": sample_rows(report.before, report.after),
        "task": sizes(report.task),
        "broken": [asdict(sample) for sample in report.task.broken],
        "seconds": dict(report.seconds),
        "cache": dict(report.cache),
        "peak_memory_bytes": report.peak_memory_bytes,
        "cost": dict(report.cost),
        "provenance": dict(report.provenance),
        "broken_by_kind": dict(Counter(sample.kind for sample in report.task.broken).most_common()),
        "requests": request_rows(report),
    }


def changes(before: Mapping[str, Metric], after: Mapping[str, Metric]) -> dict[str, Any]:
    """Metric -> the change of each rate: `value`, `low`, `high` (95 %) and `paired`."""
    return {
        name: asdict(change_of(before[name], metric))
        for name, metric in after.items()
        if metric.reading.unit == RATE
    }


def answers(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The examples whose outputs are text: question, role, right answer, and the answers before and after."""
    return [
        {
            "question": one.prompt,
            "role": one.role,
            "expected": one.expected,
            "before": one.before,
            "after": one.after,
        }
        for one in examples
        if isinstance(one.before, str)
    ]


def sizes(task: Task) -> dict[str, Any]:
    """What was forgotten, and the number of samples in each set."""
    images = {
        when: {kind: len(getattr(split, kind)) for kind in ("forget", "retain", "utility")}
        for when, split in (("probe", task.probe), ("eval", task.eval))
    }
    prompts = {
        when: {role: sum(row.role == role for row in split.prompts) for role in ("forget", "retain")}
        for when, split in (("probe", task.probe), ("eval", task.eval))
    }
    return {
        "kind": task.kind,
        "names": list(task.names),
        "forget_pairs": {name: len(pairs) for name, pairs in task.forget.items()},
        "retain_pairs": len(task.retain) - len(task.mentions),
        "retain_pairs_left_out": len(task.mentions),
        "classes": len(task.eval.forget.classes.names),
        "pictures": images,
        "prompts": prompts,
    }


def _metrics(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    return {name: metric.record() for name, metric in metrics.items()}


def _edit(edit: Edit) -> dict[str, Any]:
    """The first move's fields, null where there is none, and all moves."""
    first = edit.moves[0] if edit.moves else None
    return {
        "tower": first.tower if first else None,
        "layer": first.layer if first else None,
        "step": first.step if first else None,
        "relative_norm": first.relative_norm if first else None,
        "moves": [asdict(move) for move in edit.moves],
    }


def _front(search: Search) -> list[dict[str, Any]]:
    scores = [(name, search.scores[name]) for name in search.front]
    return [
        {
            "concept": search.concept,
            "layer": name,
            "tower": score.tower,
            "importance": score.importance,
            "alignment": score.alignment,
        }
        for name, score in scores
    ]


def _search(search: Search) -> dict[str, Any]:
    return {
        "concept": search.concept,
        "rule": search.rule,
        "granularity": search.granularity,
        "chosen": search.chosen,
        "why": search.why,
        "feasible": any(row.feasible for row in search.trace),
        "before": search.before.record(),
    }

"""The requests that a model carries, each with what is still recognised of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muwa.types.metric import Metric, still_recognised
from muwa.types.report import Report
from muwa.types.request import Request


def request_rows(report: Report) -> list[dict[str, Any]]:
    """One row per request: what it forgot, how, when, and how often that is recognised before and after."""
    return [
        {
            "sha256": one.sha256,
            "names": list(one.names),
            "task": one.task,
            "method": one.method,
            "layers": list(one.layers),
            "when": one.when,
            "made_on": list(one.made_on),
            "recognised": _recognised(one, report),
        }
        for one in report.requests
    ]


def _recognised(one: Request, report: Report) -> dict[str, dict[str, float]]:
    """Metric -> "before" and "after": the mean over the names of a request."""
    found = {}
    for name, after in report.after.items():
        if after.reading.in_objective and after.reading.role in ("forgotten", "earlier"):
            was, now = _rate(one, report.before[name]), _rate(one, after)
            if was is not None and now is not None:
                found[name] = {"before": was, "after": now}
    return found


def _rate(one: Request, metric: Metric) -> float | None:
    """The rate at which the names of a request are recognised; None if the metric has none of them."""
    rates: Mapping[str, Any] = metric.by_name
    mine = [rates[name].value for name in one.names if name in rates]
    better = metric.reading.better
    return sum(still_recognised(value, better) for value in mine) / len(mine) if mine else None

"""The outcome of a run in sentences, made from the readings of its metrics (`muwa.types.metric.Reading`)."""

from __future__ import annotations

from collections.abc import Mapping

from muwa.report.text import rounded
from muwa.types.metric import Metric, still_recognised
from muwa.types.report import Report

HARDLY_KNOWN = 0.2  # at this rate or below, the unedited model hardly knows the target
_ROUNDING = 1e-9  # 1 - 19/20 comes out slightly above 0.05 and must still count as 5 %


def verdicts(report: Report) -> list[dict[str, str]]:
    """The outcome in words, one sentence per entry.

    Order: warnings, target, earlier requests, kept, attacks. A metric gives a sentence if its reading has a
    role and a label; metrics of role "detail" are clauses of the first target sentence. The rates of target
    and attacks are those at which the target is still recognised, whichever direction of the metric is
    better.

    Returns:
        [{"kind": "good" | "bad" | "note", "text": ...}].
    """
    found = [*_search_warnings(report), *_hardly_known(report)]
    if report.edit.moves:  # an unchanged model forgot nothing, and a warning says so already
        found += _forgotten(report)
    found += _earlier(report) + _kept(report) + _attacks(report)
    return found or [_verdict("note", "Nothing was measured.")]


def is_gone(value: float, better: str, gone_at: float) -> bool:
    """Whether the target counts as forgotten: it is still recognised at a rate of at most `gone_at`.

    >>> is_gone(0.95, "higher", 0.05)
    True
    >>> is_gone(0.06, "lower", 0.05)
    False
    """
    return still_recognised(value, better) <= gone_at + _ROUNDING


def _search_warnings(report: Report) -> list[dict[str, str]]:
    """A warning for each search that chose no step, or one that is not feasible."""
    found = []
    for search in report.edit.searches:
        if search.chosen is None:
            text = f"No step was found for {search.concept}, so the model is unchanged for it. {search.why}"
            found.append(_verdict("bad", text))
        elif not search.trace[search.chosen].feasible:
            text = f"The step taken for {search.concept} was not feasible on the probe images. {search.why}"
            found.append(_verdict("bad", text))
    return found


def _hardly_known(report: Report) -> list[dict[str, str]]:
    """A warning if the unedited model hardly knows the target."""
    main = [m for m in report.before.values() if m.reading.role == "forgotten" and m.reading.in_objective]
    unknown = "base" in report.provenance and report.provenance["base"] is None
    if not main or unknown or main[0].still_recognised > HARDLY_KNOWN:
        return []
    rate = f"{_percent(main[0].still_recognised)} of {main[0].n} {main[0].reading.counted}"
    text = f"The unedited model hardly knows {_names(report)} ({rate}): what follows shows little."
    return [_verdict("bad", text)]


def _forgotten(report: Report) -> list[dict[str, str]]:
    """A sentence for each metric of role "forgotten"; the details follow the first as clauses."""
    found: list[dict[str, str]] = []
    details = [f"{_percent(m.value)} {m.reading.label}" for m in _of_role(report.after, "detail").values()]
    for name, metric in _of_role(report.after, "forgotten").items():
        gone = _is_gone(metric)
        verb = f"{'are' if len(report.task.names) > 1 else 'is'} {'no longer' if gone else 'still'}"
        change = f"{_change(report.before[name], metric)} on {metric.n} {metric.reading.counted}"
        clauses = "; " + ", ".join(details) if details and not found else ""
        text = f"{_names(report)} {verb} {metric.reading.label}: {change}{clauses}."
        found.append(_verdict("good" if gone else "bad", text))
        if gone and metric.reading.caveat:
            found.append(_verdict("note", metric.reading.caveat))
    return found


def _earlier(report: Report) -> list[dict[str, str]]:
    """A sentence for each metric of role "earlier": whether what was forgotten before still is."""
    found = []
    for name, metric in _of_role(report.after, "earlier").items():
        who = ", ".join(metric.by_name) or "all that was forgotten before"
        change = f"{_change(report.before[name], metric)} on {metric.n} {metric.reading.counted} of {who}"
        gone = _is_gone(metric)
        state = "stay forgotten" if gone else "are not all forgotten"
        text = f"Forgotten so far: earlier requests {state} ({metric.reading.label}): {change}."
        found.append(_verdict("good" if gone else "bad", text))
    return found


def _kept(report: Report) -> list[dict[str, str]]:
    """A sentence for each metric of role "kept", with its change in percentage points."""
    found = []
    for name, metric in _of_role(report.after, "kept").items():
        before = report.before[name]
        points = rounded(100 * (metric.value - before.value), "+.1f")
        rates = f"{_percent(before.value)} → {_percent(metric.value)}"
        found.append(_verdict("note", f"{metric.reading.label}: {rates} ({points} points, n = {metric.n})."))
    return found


def _attacks(report: Report) -> list[dict[str, str]]:
    """A sentence for each metric of role "attack"."""
    found = []
    for name, metric in _of_role(report.after, "attack").items():
        change = f"{_change(report.before[name], metric)} on {metric.n} {metric.reading.counted}"
        kind = "note" if metric.reading.better == "neither" else "good" if _is_gone(metric) else "bad"
        found.append(_verdict(kind, f"Attack ({metric.reading.label}): {change}."))
    return found


def _of_role(metrics: Mapping[str, Metric], role: str) -> dict[str, Metric]:
    return {name: m for name, m in metrics.items() if m.reading.role == role and m.reading.label}


def _names(report: Report) -> str:
    return ", ".join(report.task.names)


def _change(before: Metric, after: Metric) -> str:
    return f"{_percent(before.still_recognised)} → {_percent(after.still_recognised)}"


def _is_gone(metric: Metric) -> bool:
    return is_gone(metric.value, metric.reading.better, metric.reading.gone_at)


def _percent(rate: float) -> str:
    return f"{rounded(100 * rate, '.1f')} %"


def _verdict(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}

"""The outcome of a run in sentences: is the target forgotten, and is the rest kept?

The rules are those of `muwa.types.verdict.Rules`, and what each metric is about stands in its reading
(`muwa.types.metric.Reading`). Page, card, console and sweep all say what `verdict` says.
"""

from __future__ import annotations

from collections.abc import Mapping

from muwa.eval.statistics import change_of
from muwa.report.text import percent, percent_interval, rounded
from muwa.types.metric import RATE, Change, Metric, still_recognised
from muwa.types.report import Report
from muwa.types.verdict import BAD, GOOD, NOTE, UNSURE, Finding, Rules, Verdict, worst

HARDLY_KNOWN = 0.2  # at this rate or below, the unedited model hardly knows the target
_ROUNDING = 1e-9  # 1 - 19/20 comes out slightly above 0.05 and must still count as 5 %
_OPENINGS = {  # (target, kept) -> the first words of the headline
    (GOOD, GOOD): "Forgotten, and the rest is kept.",
    (GOOD, UNSURE): "Forgotten; that the rest is kept is not shown.",
    (GOOD, BAD): "Forgotten, but the rest is not kept.",
    (GOOD, NOTE): "Forgotten; whether the rest is kept was not measured.",
    (UNSURE, GOOD): "That it is forgotten is not shown; the rest is kept.",
    (UNSURE, UNSURE): "Neither that it is forgotten nor that the rest is kept is shown.",
    (UNSURE, BAD): "That it is forgotten is not shown, and the rest is not kept.",
    (UNSURE, NOTE): "That it is forgotten is not shown; whether the rest is kept was not measured.",
    (BAD, GOOD): "Not forgotten; the rest is kept.",
    (BAD, UNSURE): "Not forgotten; that the rest is kept is not shown.",
    (BAD, BAD): "Not forgotten, and the rest is not kept.",
    (BAD, NOTE): "Not forgotten; whether the rest is kept was not measured.",
    (NOTE, GOOD): "Whether it is forgotten was not measured; the rest is kept.",
    (NOTE, UNSURE): "Whether it is forgotten was not measured; that the rest is kept is not shown.",
    (NOTE, BAD): "Whether it is forgotten was not measured; the rest is not kept.",
    (NOTE, NOTE): "Nothing was measured.",
}
UNCHANGED = "The model is unchanged."
UNKNOWN = "Not shown: the model hardly knew the target before the edit."


def verdict(report: Report) -> Verdict:
    """Judge a run.

    The target is forgotten (good) if each rate of role "forgotten" is at most its `gone_at` and the interval
    ends at `rules.forget_high` or below; it is not (bad) if the interval lies above `gone_at`. The rest is
    kept (good) if the interval of each change of a labelled rate of role "kept" lies above a loss of
    `rules.kept_points`; it is not (bad) if the interval lies below. In between, nothing is shown (unsure).
    The whole is as good as its worst part. An attack that brings the target back, a target that was hardly
    known, and a part that was not measured make it unsure.

    The order of the findings: warnings, target, earlier requests, kept, attacks. An earlier request is judged
    as the target is.
    """
    forgotten = _forgotten(report) if report.edit.moves else []
    earlier, kept, attacks = _earlier(report), _kept(report), _attacks(report)
    warnings, unknown = _search_warnings(report), _hardly_known(report)
    target, rest = (worst(tuple(one.kind for one in part)) for part in (forgotten, kept))
    opening = _OPENINGS[target, rest] if report.edit.moves else UNCHANGED
    if any(one.kind == BAD for one in attacks) and target == GOOD:
        opening += " An attack brings it back."
    if unknown:
        opening = UNKNOWN
    main, others = (forgotten[0].text, forgotten[1:]) if forgotten else ("", [])
    findings = [*warnings, *unknown, *others, *earlier, *kept, *attacks]
    whole = [target, rest, *(worst(tuple(one.kind for one in part)) for part in (warnings, earlier))]
    whole += [UNSURE] if unknown or NOTE in (target, rest) else []
    whole += [UNSURE for one in attacks if one.kind != GOOD and one.kind != NOTE]
    judged = {one.metric: one.kind for one in (*forgotten, *earlier, *kept, *attacks) if one.metric}
    kind = worst(tuple(whole)) if report.edit.moves else BAD
    return Verdict(kind, f"{opening} {main}".rstrip(), tuple(findings), report.rules, judged)


def verdicts(report: Report) -> list[dict[str, str]]:
    """`verdict` as sentences: the headline, then the findings.

    Returns:
        [{"kind": "good" | "unsure" | "bad" | "note", "text": ...}].
    """
    found = verdict(report)
    return [
        {"kind": one.kind, "text": one.text} for one in (Finding(found.kind, found.headline), *found.findings)
    ]


def is_gone(value: float, better: str, gone_at: float) -> bool:
    """Whether the target counts as forgotten: it is still recognised at a rate of at most `gone_at`.

    >>> is_gone(0.95, "higher", 0.05)
    True
    >>> is_gone(0.06, "lower", 0.05)
    False
    """
    return still_recognised(value, better) <= gone_at + _ROUNDING


def target_kind(metric: Metric, rules: Rules) -> str:
    """Whether a rate of role "forgotten" or "attack" shows that the target is gone."""
    low, high = _still(metric)
    if is_gone(metric.value, metric.reading.better, metric.reading.gone_at):
        return GOOD if high is not None and high <= rules.forget_high + _ROUNDING else UNSURE
    return UNSURE if low is not None and low <= metric.reading.gone_at + _ROUNDING else BAD


def kept_kind(before: Metric, after: Metric, rules: Rules) -> str:
    """Whether a rate of role "kept" shows that no more than the allowed points were lost."""
    change = change_of(before, after)
    gain = -1 if after.reading.better == "lower" else 1  # the sign of a change for the better
    if change.low is None or change.high is None:
        return UNSURE
    low, high = sorted((gain * change.low, gain * change.high))
    allowed = -rules.kept_points / 100
    if low >= allowed - _ROUNDING:
        return GOOD
    return BAD if high < allowed else UNSURE


def _still(metric: Metric) -> tuple[float | None, float | None]:
    """The interval of the rate at which the target is still recognised."""
    if metric.low is None or metric.high is None:
        return None, None
    if metric.reading.better == "higher":
        return 1 - metric.high, 1 - metric.low
    return metric.low, metric.high


def _search_warnings(report: Report) -> list[Finding]:
    """A warning for each search that chose no step, or one that is not feasible."""
    found = []
    for search in report.edit.searches:
        if search.chosen is None:
            text = f"No step was found for {search.concept}, so the model is unchanged for it. {search.why}"
            found.append(Finding(BAD, text))
        elif not search.trace[search.chosen].feasible:
            text = f"The step taken for {search.concept} was not feasible on the probe images. {search.why}"
            found.append(Finding(BAD, text))
    return found


def _hardly_known(report: Report) -> list[Finding]:
    """A warning if the unedited model hardly knows the target."""
    main = [m for m in report.before.values() if m.reading.role == "forgotten" and m.reading.in_objective]
    unknown = "base" in report.provenance and report.provenance["base"] is None
    if not main or unknown or main[0].still_recognised > HARDLY_KNOWN:
        return []
    rate = f"{percent(main[0].still_recognised)} % of {main[0].n} {main[0].reading.counted}"
    text = f"The unedited model hardly knows {_names(report)} ({rate}): what follows shows little."
    return [Finding(UNSURE, text)]


def _forgotten(report: Report) -> list[Finding]:
    """A sentence for each metric of role "forgotten"; the details follow the first as clauses."""
    found: list[Finding] = []
    details = [f"{percent(m.value)} % {m.reading.label}" for m in _of_role(report.after, "detail").values()]
    for name, metric in _of_role(report.after, "forgotten").items():
        reading = metric.reading
        gone = is_gone(metric.value, reading.better, reading.gone_at)
        verb = f"{'are' if len(report.task.names) > 1 else 'is'} {'no longer' if gone else 'still'}"
        clauses = "; " + ", ".join(details) if details and not found else ""
        kind = target_kind(metric, report.rules)
        if not gone and kind == UNSURE:
            clauses += f"; at most {percent(reading.gone_at)} % counts as forgotten"
        elif gone and kind == UNSURE:
            clauses += f"; too few to show less than {percent(report.rules.forget_high)} %"
        text = f"{_names(report)} {verb} {reading.label}: {_change(report.before[name], metric)}{clauses}."
        found.append(Finding(kind, text, name))
        if gone and reading.caveat:
            found.append(Finding(NOTE, reading.caveat))
    return found


def _earlier(report: Report) -> list[Finding]:
    """A sentence for each metric of role "earlier": whether what was forgotten before still is."""
    found = []
    for name, metric in _of_role(report.after, "earlier").items():
        who = ", ".join(metric.by_name) or "all that was forgotten before"
        gone = is_gone(metric.value, metric.reading.better, metric.reading.gone_at)
        state = "stay forgotten" if gone else "are not all forgotten"
        change = _change(report.before[name], metric)
        text = f"Forgotten so far ({who}): earlier requests {state} ({metric.reading.label}): {change}."
        found.append(Finding(target_kind(metric, report.rules), text, name))
    return found


def _kept(report: Report) -> list[Finding]:
    """A sentence for each rate of role "kept", with its change in percentage points."""
    found = []
    allowed = f"{report.rules.kept_points:g} points"
    said = {GOOD: f"no more than {allowed} lost", BAD: f"more than {allowed} lost"}
    for name, metric in _of_role(report.after, "kept").items():
        if metric.reading.unit != RATE:
            continue
        before = report.before[name]
        change = change_of(before, metric)
        points = f"{rounded(100 * change.value, '+.1f')} points"
        if change.low is not None and change.high is not None:
            ends = " to ".join(rounded(100 * end, "+.1f") for end in (change.low, change.high))
            points += f", 95 % interval {ends}"
        kind = kept_kind(before, metric, report.rules)
        end = _undecided(change, metric, report.rules) if kind == UNSURE else said[kind]
        rates = f"{percent(before.value)} → {percent(metric.value)} % of {metric.n} {metric.reading.counted}"
        found.append(Finding(kind, f"{metric.reading.label}: {rates} ({points}): {end}.", name))
    return found


def _undecided(change: Change, after: Metric, rules: Rules) -> str:
    """What the samples of a rate of role "kept" show where they do not show that it is kept or lost."""
    allowed = f"{rules.kept_points:g} points"
    gain = -1 if after.reading.better == "lower" else 1
    if 100 * gain * change.value < -rules.kept_points:
        return f"that more than {allowed} were lost is likely, not shown"
    if change.low is not None and change.high is not None and max(gain * change.low, gain * change.high) < 0:
        return f"a loss is shown; that it is no more than {allowed} is not"
    return f"too few to show that no more than {allowed} were lost"


def _attacks(report: Report) -> list[Finding]:
    """A sentence for each metric of role "attack"."""
    found = []
    for name, metric in _of_role(report.after, "attack").items():
        kind = NOTE if metric.reading.better == "neither" else target_kind(metric, report.rules)
        text = f"Attack ({metric.reading.label}): {_change(report.before[name], metric)}."
        found.append(Finding(kind, text, name))
    return found


def _of_role(metrics: Mapping[str, Metric], role: str) -> dict[str, Metric]:
    """The metrics with this role that have a label, and samples."""
    return {name: m for name, m in metrics.items() if m.reading.role == role and m.reading.label and m.n}


def _names(report: Report) -> str:
    return ", ".join(report.task.names)


def _change(before: Metric, after: Metric) -> str:
    """The rates at which the target is recognised: before → after, n, and the interval after."""
    rates = f"{percent(before.still_recognised)} → {percent(after.still_recognised)} %"
    counted = f"of {after.n} {after.reading.counted}"
    low, high = _still(after)
    if low is None or high is None:
        return f"{rates} {counted}"
    return f"{rates} {counted} (95 % interval {percent_interval(low, high, after.n)} %)"

"""The unlearning card: what was measured and not measured, who asked, how to check and to undo.

The same card is `card.md` of a run, README.md of a folder that `apply` wrote, and README.md of a patch on the
hub. It is written for people who do not know muwa, such as a data-protection officer. Texts that a user or a
stranger wrote are escaped: they cannot become markup.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from muwa.json_files import read_json
from muwa.patch.apply import Patch
from muwa.types.metric import RATE, still_recognised
from muwa.types.search import BOTH_TOWERS
from muwa.types.verdict import BAD, UNSURE, word

TEMPLATES = Path(__file__).parent / "templates"
NOT_STATED = "not stated"
RUN, FOLDER, HUB = "run", "folder", "hub"  # where a card is
_METRIC = (
    "value", "n", "low", "high", "better", "unit", "reads", "role", "label", "counted", "capped", "gone_at",
    "guessed",
)  # fmt: skip
_MOST = 3  # names that are listed of those that are guessed instead
_GONE = ("forgotten", "earlier", "attack")  # roles of rates that say whether something is still recognised
_SPECIAL = re.compile(r"([\\`*_\[\]|~$&<>#@]|:(?=//)|(?<=www)\.)")  # the last two: no address becomes a link
_KEPT = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "language")


def escaped(text: object) -> str:
    """A text as Markdown that shows it as it is, on one line: no markup, no HTML, no link.

    >>> escaped("<b>*hi*</b> [a](b)")
    '\\\\<b\\\\>\\\\*hi\\\\*\\\\</b\\\\> \\\\[a\\\\](b)'
    >>> escaped("one\\n# two"), escaped(None)
    ('one \\\\# two', 'not stated')
    """
    if text is None:
        return NOT_STATED
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", "".join(sign for sign in line if sign.isprintable()))


def _code(text: object) -> str:
    """A text for a code span in a table: no backtick, no bar, no line break."""
    line = " ".join(str(text).split()).replace("`", "'").replace("|", "¦")
    return "".join(sign for sign in line if sign.isprintable())


def _word(text: object) -> str:
    """A text as one word of a shell command in an indented code block."""
    return shlex.quote(" ".join(str(text).split()))


def read_results(patch: Patch, path: Path, *, required: bool) -> dict[str, Any] | None:
    """What a card tells of the run that made a patch (`told`); None if there is no such file.

    Raises:
        ValueError: The file is not a results.json, or is one of another edit.
        FileNotFoundError: It is required and not there.
    """
    if not path.is_file():
        if required:
            raise FileNotFoundError(f"--results {path}: no such file")
        return None
    try:
        results = read_json(path, dict, "the results.json of a run")
        moves, run = results["edit"]["moves"], told(results)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a results.json of muwa ({error!r})") from error
    wanted = [(move.concept, move.tower, move.layer, move.step) for move in patch.moves]
    if [(m["concept"], m["tower"], m["layer"], m["step"]) for m in moves] != wanted:
        raise ValueError(f"{path}: the results are of another edit than the patch's; give --results FILE")
    return run


def told(results: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a results.json that a card tells; results of earlier versions lack some of it.

    Raises:
        KeyError: There are no metrics.
    """
    about = results.get("provenance", {})
    return {
        "request": dict(results.get("request", {})),
        "verdict": results.get("verdict"),
        "metrics": {
            when: {
                name: {key: metric[key] for key in _METRIC if key in metric} for name, metric in found.items()
            }
            for when, found in results["metrics"].items()
        },
        "worst": _worst(results["metrics"]),
        "changes": dict(results.get("changes", {})),
        "edited": dict(results.get("edited", {})),
        "parameters": results.get("cost", {}).get("parameters"),
        "all_parameters": about.get("model", {}).get("parameters"),
        "carried": [one["sha256"] for one in results.get("requests", ())],
        "measures": list(about.get("measures", ())),
        "observer": about.get("observer", ""),
    }


def _worst(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """The single other name that lost most: `before`, `after`, `n` and what it counts; None if none is known.

    Its name is not told: a card is handed to others. It is in results.json.
    """
    found = []
    for name, metric in metrics.get("after", {}).items():
        if metric.get("role") != "kept":
            continue
        old = metrics["before"].get(name, {}).get("by_name", {})
        sign = -1 if metric["better"] == "lower" else 1
        for one, rate in metric.get("by_name", {}).items():
            if one in old:
                lost = sign * (old[one]["value"] - rate["value"])
                row = {"before": old[one]["value"], "after": rate["value"], "n": rate["n"], "lost": lost}
                found.append({**row, "counted": metric.get("counted", "samples")})
    return max(found, key=lambda row: row["lost"], default=None)


def patch_entry(patch: Patch, sha256: str, run: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a card and the record of an edited folder tell of a patch.

    Args:
        sha256: Of the patch file.
        run: `told` of the run that made it; None if its results are not at hand.
    """
    return {
        "sha256": sha256,
        "base_fingerprint": patch.base_fingerprint,
        "moves": [asdict(move) for move in patch.moves],
        "story": dict(patch.provenance),
        "tensors": list(patch.deltas),
        **({"run": dict(run)} if run else {}),
    }


def run_entry(results: Mapping[str, Any], tensors: Sequence[str]) -> dict[str, Any]:
    """The same from a run's results, in which the patch's digests stand.

    Args:
        tensors: The names of the edited tensors.
    """
    about, edited = results["provenance"], results["edited"]
    story = {
        "model": about["model"]["source"],
        "task": results["task"]["kind"],
        "names": results["task"]["names"],
        "method": about.get("method", NOT_STATED),
        "data": about.get("data", {}).get("fingerprint"),
        "versions": about.get("versions", {}),
    }
    return {
        "sha256": edited.get("patch", NOT_STATED),
        "base_fingerprint": edited.get("base", NOT_STATED),
        "moves": results["edit"]["moves"],
        "story": story,
        "tensors": list(tensors),
        "run": told(results),
    }


def card_text(
    entries: Sequence[Mapping[str, Any]],
    place: str,
    *,
    base: Mapping[str, Any],
    files: Mapping[str, str],
    target: str = "",
    removed: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card; in a folder and on the hub with the hub's metadata before it.

    Args:
        entries: The patches, as in the record of an edited folder (`patch_entry`).
        place: Where the card is: `RUN`, `FOLDER` or `HUB`. On the hub it does not tell who asked.
        base: What is known of the base (`base_metadata`).
        files: Edited file -> SHA-256, for a folder.
        target: The repository or folder, for the commands on the hub.
        removed: The patches that were taken off a folder: "sha256" and "when" of each.
    """
    towers = {move["tower"] for entry in entries for move in entry["moves"]}  # of all patches on the model
    shown = [_shown(entry, towers) for entry in entries]
    body = (
        _environment()
        .get_template("card.md")
        .render(
            place=place,
            entries=shown,
            names=", ".join(dict.fromkeys(name for one in shown for name in one["list"])) or "nothing",
            word=word,
            asked=_asked,
            unedited=sorted({name for entry in entries for name in entry.get("unedited", ())}),
            files=files,
            base={"id": None, "license": None, **base},
            target=target,
            removed=removed,
            audit=place == RUN and all(entry["sha256"] == NOT_STATED for entry in entries),
        )
    )
    head = "" if place == RUN else f"---\n{_metadata(base, place)}\n---\n\n"
    lines = re.sub(r"\n{3,}", "\n\n", body.strip())  # every text that is inserted is one line
    return f"{head}{lines}\n"


def _asked(run: Mapping[str, Any] | None, key: str) -> object:
    """What the user wrote of the request; where there is nothing, how it is filled in."""
    found = (run or {}).get("request", {}).get(key)
    return f"{NOT_STATED}; the operator fills it in: request.{key}=..." if found is None else found


def _metadata(base: Mapping[str, Any], place: str) -> str:
    """The hub's metadata: what the base's card says of licence and use, and what this is."""
    known = {key: base[key] for key in _KEPT if base.get(key)}
    if place == FOLDER:
        tags = ["machine-unlearning", "concept-erasure", "muwa"]
    else:  # a patch is used with muwa, whatever the base is used with
        known = {key: value for key, value in known.items() if key not in ("pipeline_tag", "library_name")}
        known["library_name"] = "muwa"
        tags = ["machine-unlearning", "concept-erasure", "patch", "muwa"]
    data = ModelCardData(base_model=base.get("id"), tags=tags, **known)
    return data.to_yaml()


def base_metadata(base: str | Path) -> dict[str, Any]:
    """What the base's own card says: `license` and other fields of its metadata, and `id`, its hub id.

    Reads README.md of a folder, or of a hub repository if it is in the hub's cache. Nothing is downloaded.
    """
    folder = Path(base)
    if not str(base):
        return {}
    if folder.is_dir():
        return card_metadata(folder / BASE_CARD if (folder / BASE_CARD).is_file() else folder / "README.md")
    try:
        validate_repo_id(str(base))
        card = try_to_load_from_cache(str(base), "README.md")
    except HFValidationError:
        return {}
    if not isinstance(card, str):
        return {}
    return {**card_metadata(Path(card)), "id": str(base)}


BASE_CARD = "README.base.md"  # the base's own card in an edited folder


def card_metadata(card: Path) -> dict[str, Any]:
    """Fields of a model card's metadata; {} if there is no card, or its metadata cannot be read."""
    if not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, TypeError, yaml.YAMLError):
        return {}
    found = {key: data[key] for key in _KEPT if data.get(key)}
    if isinstance(one := data.get("base_model"), str):
        found["id"] = one
    return found


def _shown(entry: Mapping[str, Any], changed: Collection[str]) -> dict[str, Any]:
    """One patch as the template shows it.

    Args:
        changed: The towers that this and the other patches of the card change.
    """
    moves, story, run = entry["moves"], entry["story"], entry.get("run")
    names = list(dict.fromkeys(story.get("names") or sorted({move["concept"] for move in moves})))
    checks = _checks()["outputs"].get(run["observer"] if run else "", {})
    subject = _checks()["subjects"].get(story.get("task"), _checks()["subjects"]["other"])[len(names) > 1]
    towers = list(dict.fromkeys(move["tower"] for move in moves))
    measures = run["measures"] if run else ()
    told_apart, answered = _told_apart(checks, changed, measures)
    wanted = checks.get("not_measured", {}).items()
    open_checks = [text for name, text in wanted if name not in (*measures, answered)]
    if run is None:
        open_checks = ["anything: the results of the run are not known"]
    edited = run["edited"] if run else {}
    state = [one["sha256"] for one in story.get("state", {}).get("patches", ())]
    return {
        **entry,
        "result": entry.get("result", edited.get("result", "")),
        "on": state or (run.get("carried", []) if run else []),
        "list": names,
        "names": ", ".join(names) or "nothing",
        "subject": subject,
        "aim": checks.get("aim", "should forget"),
        "layers": sorted({move["layer"] for move in moves}),
        "parts": [_checks()["parts"].get(tower, tower) for tower in towers],
        "told_apart": told_apart.format(subject=subject),
        "share": _share(run),
        "instead": _instead(run, checks.get("instead", "").format(subject=subject), names) if run else "",
        "method": str(story.get("method", NOT_STATED)).rpartition(".")[2],
        "version": story.get("versions", {}).get("muwa", NOT_STATED),
        "not_measured": [text.format(subject=subject) for text in open_checks],
        "limits": [text.format(subject=subject) for text in checks.get("limits", ())],
        "run": {**run, **_told_of(run), "rows": _rows(run)} if run else None,
    }


def _told_apart(
    checks: Mapping[str, Any], changed: Collection[str], measures: Sequence[str]
) -> tuple[str, str]:
    """What is known of a way around the edit that the outputs do not show, and the measure that it answers.

    That a part of the model was not changed answers it without a measurement. Both are "" if there is no such
    question.
    """
    question = checks.get("told_apart")
    if question is None or not changed:
        return "", ""
    if question.get("part") and not {question["part"], BOTH_TOWERS} & {*changed}:
        return question["unchanged"], question["measure"]
    state = (
        "was measured: see the technical annex" if question.get("measure") in measures else "was not measured"
    )
    return f"{question['asks']} {state}.", ""


def _share(run: Mapping[str, Any] | None) -> str:
    """The numbers that were changed, in per cent of all; "" if it is not known.

    >>> _share({"parameters": 49_152, "all_parameters": 8_000_000}), _share({"parameters": 3})
    ('0.61', '')
    """
    if not run or not run.get("parameters") or not run.get("all_parameters"):
        return ""
    return f"{100 * run['parameters'] / run['all_parameters']:.2g}"


def _instead(run: Mapping[str, Any], says: str, names: Sequence[str]) -> dict[str, Any] | None:
    """Which names what was forgotten gets after the edit; None where it was not counted.

    Returns:
        "says": how the sentence begins; "names": the most frequent as (name, how often); "others": how often
        still others; "none": how often no name; "kept": how often its own; "n": of how many.
    """
    found: Mapping[str, int] = next(
        (one["guessed"] for one in run["metrics"].get("after", {}).values() if one.get("guessed")), {}
    )
    if not found or not says:
        return None
    wrong = {name: count for name, count in found.items() if name and name not in names}
    most = list(wrong.items())[:_MOST]
    return {
        "says": says,
        "names": most,
        "others": sum(wrong.values()) - sum(count for _, count in most),
        "none": found.get("", 0),
        "kept": sum(found.get(name, 0) for name in names),
        "n": sum(found.values()),
    }


def _told_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The first rate of the target, the rates that were judged and the worst single other name, in counts."""
    before, after = (run["metrics"].get(when, {}) for when in ("before", "after"))
    kinds = (run["verdict"] or {}).get("kinds", {})
    rated = {name: metric for name, metric in after.items() if metric.get("unit", RATE) == RATE}
    tried = _tried([one for one in (*before.values(), *rated.values()) if one.get("unit", RATE) == RATE])
    judged = [
        {**_judged(before.get(name), metric, kinds[name], tried), "change": _change(run["changes"].get(name))}
        for name, metric in rated.items()
        if name in kinds
    ]
    worst = run.get("worst")
    counted = (worst or {}).get("counted", "samples")
    return {
        "judged": judged,
        "main": next((row for row in judged if row["role"] == "forgotten"), None),
        "kept": [row for row in judged if row["role"] == "kept"],
        "worst": worst
        and _counts((worst["before"], worst["n"]), (worst["after"], worst["n"]), tries=counted in tried),
        "worst_counted": counted,
        "lost": bool(worst and worst["lost"] > 0),
        "open": [
            {**one, "role": after.get(one["metric"], {}).get("role", "")}
            for one in (run["verdict"] or {}).get("findings", ())
            if one["kind"] in (UNSURE, BAD)
        ],
    }


def _judged(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], kind: str, tried: Collection[str]
) -> dict[str, Any]:
    """A rate that was judged, in counts; for what was to be forgotten, how often it is still recognised."""
    gone = after.get("role") in _GONE

    def rate(metric: Mapping[str, Any], key: str) -> float | None:
        if metric.get(key) is None:
            return None
        return still_recognised(metric[key], after["better"]) if gone else float(metric[key])

    rates = [
        (value, one["n"]) for one in (before, after) if one and (value := rate(one, "value")) is not None
    ]
    told = _counts(*rates, tries=after.get("counted", "samples") in tried)
    ends = [end for end in (rate(after, "low"), rate(after, "high")) if end is not None]
    return {
        "role": after.get("role", ""),
        "label": after.get("label", ""),
        "counted": after.get("counted", "samples"),
        "before": told[0] if before else "",
        "after": told[-1],
        "n": after["n"],
        "low": 100 * min(ends) if ends else None,
        "high": 100 * max(ends) if ends else None,
        "most": _about(max(ends)) if ends else "",
        "gone": gone,
        "gone_at": 100 * after.get("gone_at", 0.0),
        "kind": kind,
    }


def _tried(metrics: Collection[Mapping[str, Any]]) -> set[str]:
    """What of these rates was tried several times each: the samples that they count."""
    return {
        one.get("counted", "samples")
        for one in metrics
        if abs(one["value"] * one["n"] - round(one["value"] * one["n"])) > 1e-6
    }


def _counts(*rates: tuple[float, int], tries: bool) -> list[str]:
    """Rates of n samples as counts; as percentages where several tries with a sample make its rate.

    >>> _counts((1.0, 8), (0.0, 8), tries=False), _counts((1.0, 2), (1 / 6, 2), tries=True)
    (['8 of 8', '0 of 8'], ['100.0 % of the tries with 2', '16.7 % of the tries with 2'])
    """
    if not tries:
        return [f"{round(rate * n)} of {n}" for rate, n in rates]
    return [f"{100 * rate:.1f} % of the tries with {n}" for rate, n in rates]


def _about(rate: float) -> str:
    """A rate in words, never less than it is.

    >>> _about(0.324), _about(0.56), _about(0.0)
    ('about 1 in 3', 'about 56 in 100', '0')
    """
    if rate <= 0:
        return "0"
    if rate > 0.5:
        return f"about {math.ceil(100 * rate - 1e-9)} in 100"
    return f"about 1 in {math.floor(1 / rate + 1e-9)}"


def _rows(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of metrics: rates in per cent, changes in points."""
    kinds = (run["verdict"] or {}).get("kinds", {})
    rows = []
    for name, after in run["metrics"].get("after", {}).items():
        before = run["metrics"]["before"].get(name, {})
        rate = after.get("unit", RATE) == RATE
        rows.append(
            {
                "name": name,
                "reads": after.get("reads", ""),
                "before": _value(before, rate) if before else "",
                "after": _value(after, rate),
                "change": _change(run["changes"].get(name)),
                "n": after["n"],
                "better": after["better"],
                "kind": kinds.get(name, ""),
                "role": after.get("role", ""),
            }
        )
    return rows


def _value(metric: Mapping[str, Any], rate: bool) -> str:
    """A value with its interval."""
    scale, spec, unit = (100, ".1f", " %") if rate else (1, ".3f", "")
    low, high = metric.get("low"), metric.get("high")
    ends = "" if low is None or high is None else f" ({scale * low:{spec}} to {scale * high:{spec}})"
    return f"{'> ' if metric.get('capped') else ''}{scale * metric['value'] + 0.0:{spec}}{unit}{ends}"


def _change(change: Mapping[str, Any] | None) -> str:
    """A change of a rate in points, with its interval; what rounds to zero has no sign."""
    if change is None:
        return ""

    def points(value: float) -> str:
        text = f"{100 * value:+.1f}"
        return text if text.strip("+-0.") else "0.0"

    if change["low"] is None:
        return f"{points(change['value'])} points"
    return f"{points(change['value'])} points ({points(change['low'])} to {points(change['high'])})"


@cache
def _checks() -> dict[str, Any]:
    """The measures and limits that a card names, by the kind of observer."""
    found = yaml.safe_load((TEMPLATES / "checks.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@cache
def _environment() -> jinja2.Environment:
    """The environment of the template. It escapes whatever it inserts, except code and the template's own."""

    def finalize(value: object) -> object:
        return value if isinstance(value, _Plain) else escaped(value)

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        keep_trailing_newline=True,
    )
    made.filters["code"] = lambda text: _Plain(_code(text))
    made.filters["word"] = lambda text: _Plain(_word(text))
    made.filters["comma"] = lambda spec, number: spec.format(number)
    return made


class _Plain(str):
    """A text that is safe as it is."""

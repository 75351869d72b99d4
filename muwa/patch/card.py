"""The unlearning card: who asked, what was changed, measured and not measured, how to check and to undo.

The same card is `card.md` of a run, README.md of a folder that `apply` wrote, and README.md of a patch on the
hub. It is written for people who do not know muwa, such as a data-protection officer. Texts that a user or a
stranger wrote are escaped: they cannot become markup.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
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
from muwa.types.metric import RATE

TEMPLATES = Path(__file__).parent / "templates"
NOT_STATED = "not stated"
RUN, FOLDER, HUB = "run", "folder", "hub"  # where a card is
WORDS = {"good": "Shown", "unsure": "Not shown", "bad": "Failed", "note": "Note"}  # kind of a finding -> word
_METRIC = ("value", "n", "low", "high", "better", "unit", "reads", "role", "label", "counted", "capped")
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
        "changes": dict(results.get("changes", {})),
        "edited": dict(results.get("edited", {})),
        "parameters": results.get("cost", {}).get("parameters"),
        "measures": list(about.get("measures", ())),
        "observer": about.get("observer", ""),
    }


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
) -> str:
    """The card, with the hub's metadata before it.

    Args:
        entries: The patches, as in the record of an edited folder (`patch_entry`).
        place: Where the card is: `RUN`, `FOLDER` or `HUB`. On the hub it does not tell who asked.
        base: What is known of the base (`base_metadata`).
        files: Edited file -> SHA-256, for a folder.
        target: The repository or folder, for the commands on the hub.
    """
    shown = [_shown(entry) for entry in entries]
    runs = [one["run"] for one in shown if one["run"]]
    checks = [_checks().get(run["observer"], {}) for run in runs]
    body = (
        _environment()
        .get_template("card.md")
        .render(
            place=place,
            entries=shown,
            names=", ".join(dict.fromkeys(name for one in shown for name in one["list"])) or "nothing",
            words=WORDS,
            asked=lambda run, key: (run or {}).get("request", {}).get(key),
            relearning=any("relearning" in run["measures"] for run in runs),
            limits=list(dict.fromkeys(text for one in checks for text in one.get("limits", ()))),
            unedited=sorted({name for entry in entries for name in entry.get("unedited", ())}),
            files=files,
            base={"id": None, "license": None, **base},
            target=target,
        )
    )
    return f"---\n{_metadata(base, place)}\n---\n\n{body.strip()}\n"


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


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One patch as the template shows it."""
    moves, story, run = entry["moves"], entry["story"], entry.get("run")
    names = list(dict.fromkeys(story.get("names") or sorted({move["concept"] for move in moves})))
    checks = _checks().get(run["observer"] if run else "", {})
    open_checks = checks.get("not_measured", {})
    return {
        **entry,
        "list": names,
        "names": ", ".join(names) or "nothing",
        "layers": sorted({move["layer"] for move in moves}),
        "method": str(story.get("method", NOT_STATED)).rpartition(".")[2],
        "version": story.get("versions", {}).get("muwa", NOT_STATED),
        "not_measured": [text for name, text in open_checks.items() if name not in run["measures"]]
        if run
        else ["anything: the results of the run are not known"],
        "run": {**run, "rows": _rows(run), "zero": _zero(run)} if run else None,
    }


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


def _zero(run: Mapping[str, Any]) -> list[str]:
    """What "0 of n" means, for the first metric of the forgotten that is 0."""
    for metric in run["metrics"].get("after", {}).values():
        gone = metric["value"] == (1 if metric["better"] == "higher" else 0)
        if metric.get("role") == "forgotten" and gone and metric.get("high") is not None:
            high = 1 - metric["low"] if metric["better"] == "higher" else metric["high"]
            return [
                f"0 of {metric['n']} does not mean never: if the target were still recognised in up to "
                f"{100 * high:.0f} of 100 cases, {metric['n']} samples could all miss it."
            ]
    return []


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

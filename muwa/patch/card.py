"""The model card of a patch: what was forgotten, how, what was measured, and how to use the patch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from muwa.json_files import read_json
from muwa.patch.apply import Patch


def results_of(patch: Patch, path: Path, *, required: bool) -> Mapping[str, Any] | None:
    """The metrics of the run that made a patch: {"before": ..., "after": ...}; None if there are none.

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
        moves, metrics = results["edit"]["moves"], results["metrics"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a results.json of muwa ({error!r})") from error
    wanted = [(move.concept, move.tower, move.layer, move.step) for move in patch.moves]
    if [(m["concept"], m["tower"], m["layer"], m["step"]) for m in moves] != wanted:
        raise ValueError(f"{path}: the results are of another edit than the patch's; give --results FILE")
    return metrics


def card_text(
    patch: Patch,
    target: str,
    measured: Mapping[str, Any] | None,
    *,
    base_model: str | None,
    licence: str | None,
) -> str:
    """README.md with the hub's metadata.

    Args:
        target: The repository or folder, for the commands.
        measured: Metric name -> metric, under "before" and "after" (docs/results_schema.md).
    """
    hub_id = base_model if base_model and not Path(base_model).is_dir() else None
    data = ModelCardData(
        base_model=hub_id,
        license=licence,
        library_name="muwa",
        tags=["machine-unlearning", "concept-erasure", "patch", "muwa"],
    )
    names = sorted({move.concept for move in patch.moves})
    story = patch.provenance
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# A patch that makes a model forget {', '.join(names) or 'nothing'}",
        "",
        f"An edit of {hub_id or story.get('model', 'a model')}, made with muwa. The model is not here.",
        "",
        *_facts(patch),
        "",
        *_measured(measured),
        "",
        *_use(target, hub_id or "BASE"),
    ]
    return "\n".join(lines) + "\n"


def _facts(patch: Patch) -> list[str]:
    """What was edited, as a list."""
    story = patch.provenance
    known = [("Task", story.get("task")), ("Method", story.get("method")), ("Made on", story.get("model"))]
    lines = [f"- {what}: {value}" for what, value in known if value]
    for move in patch.moves:
        lines.append(
            f"- Layer for {move.concept}: `{move.layer}` ({move.tower}), step {move.step:.6g}, "
            f"relative norm {move.relative_norm:.4f}"
        )
    lines.append(f"- Edited tensors: {', '.join(f'`{name}`' for name in patch.deltas)}")
    lines.append(f"- Fingerprint of the base: `{patch.base_fingerprint}`")
    return lines


def _measured(measured: Mapping[str, Any] | None) -> list[str]:
    """The table of the run's results."""
    if not measured:
        return ["## Measured", "", "The run's results were not given with the patch."]
    lines = [
        "## Measured",
        "",
        "| metric | before | after | 95 % interval | n | better |",
        "|---|---|---|---|---|---|",
    ]
    for name, after in measured["after"].items():
        before = measured["before"].get(name, {}).get("value")
        low, high = after.get("low"), after.get("high")
        interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
        first = "" if before is None else f"{before:.3f}"
        lines.append(
            f"| {name} | {first} | {after['value']:.3f} | {interval} | {after['n']} | {after['better']} |"
        )
    return lines


def _use(target: str, base: str) -> list[str]:
    """How to apply, verify and undo the patch."""
    return [
        "## Use",
        "",
        f"    python -m muwa.patch pull {target} --out patch.safetensors",
        f"    python -m muwa.patch apply patch.safetensors {base} --out edited   # its folder or file",
        "    python -m muwa.patch show patch.safetensors                       # what it changes",
        "    python -m muwa.patch remove patch.safetensors edited --out again   # undone, bit for bit",
        "",
        "`apply` refuses every other base and a second application. `remove` succeeds only if the patch is",
        "on the weights, so it also verifies that. The patch holds the original tensors, so it can undo the",
        "edit. Give people who must not undo it the edited model instead.",
    ]

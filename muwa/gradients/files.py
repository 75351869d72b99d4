"""Gradients as one safetensors file. Reading checks that they were computed from what this run would use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.drafts import new_file
from muwa.json_files import parse_json
from muwa.types.gradients import FORGET_ALONE, Gradients
from muwa.weight_files.diagnosis import check_file

FORMAT = "muwa.gradients/1"


def write_gradients(path: Path, gradients: Gradients) -> None:
    """Write gradients as one safetensors file, atomically.

    Its tensors are `forget/<parameter>` and, with a retain gradient, `retain/<parameter>`. Its metadata holds
    the rest.
    """
    tensors = {f"forget/{k}": g.contiguous() for k, g in gradients.forget.items()}
    tensors |= {f"retain/{k}": g.contiguous() for k, g in gradients.retain.items()}
    about = {"n_forget": gradients.n_forget, "n_retain": gradients.n_retain, "origin": dict(gradients.origin)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as draft:
        save_file(tensors, draft, metadata={FORMAT: json.dumps(about, sort_keys=True)})


def _about(text: str | None, path: Path, *, retain: bool) -> dict[str, Any]:
    """What the metadata of a gradient file says.

    Args:
        retain: Whether the file has a retain gradient.

    Raises:
        ValueError: It is not what `write_gradients` writes.
    """
    if text is None:
        raise ValueError(
            f"gradients={path}: no muwa gradients in it; write one: python -m muwa.gradients export RUN FILE"
        )
    wanted = "what muwa writes"
    about = parse_json(text, f"gradients={path}: its metadata", dict, wanted)
    counts = (about.get("n_forget"), about.get("n_retain"))
    least = (1, 1 if retain else 0)
    fit = all(type(n) is int and n >= lowest for n, lowest in zip(counts, least, strict=True))
    if not isinstance(about.get("origin"), dict) or not fit:
        raise ValueError(f"gradients={path}: its metadata has no origin or no counts, want {wanted}")
    return about


def read_gradients(path: Path, expected: Mapping[str, str] | None) -> Gradients:
    """Read a file that `write_gradients` wrote.

    Args:
        expected: What the gradients must have been computed from (`muwa.gradients.mean.origin`). If it says
            that no retain gradient is taken, that of the file is left out. None skips this check.

    Raises:
        ValueError: `path` is not such a file, or its gradients were computed from something else; says what
            differs. Or it has no retain gradient, and one is expected.
    """
    if path.is_file():
        check_file(path, "gradients=")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            retain = any(key.startswith("retain/") for key in tensors)
            about = _about((file.metadata() or {}).get(FORMAT), path, retain=retain)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"gradients={path}: not a readable gradient file ({error})") from error
    _check_origin(about["origin"], expected or {}, path)

    def side(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}/"): t for k, t in tensors.items() if k.startswith(f"{name}/")}

    found = Gradients(side("forget"), side("retain"), about["n_forget"], about["n_retain"], about["origin"])
    if expected is None:
        return found
    if expected.items() >= FORGET_ALONE.items():
        return found.without_retain()
    if not found.retain:
        raise ValueError(
            f"gradients={path}: it has no retain gradient, which this run needs; take a file from a run of "
            "method=slug, or leave gradients=null to compute them"
        )
    return found


def _check_origin(found: Mapping[str, str], expected: Mapping[str, str], path: Path) -> None:
    """Raise if gradients were computed from something else than expected."""
    if wrong := [k for k in expected if k not in FORGET_ALONE and found.get(k) != expected[k]]:
        lines = [f"{k}: file has {str(found.get(k))[:12]}, this run has {expected[k][:12]}" for k in wrong]
        raise ValueError(
            f"gradients={path}: computed from something else than this run ({'; '.join(lines)}). "
            "Take the same model, data and losses, or leave gradients=null to compute them."
        )

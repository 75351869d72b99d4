"""Twins: models trained from nothing without the forgotten, in open_clip's folder layout. The exact answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from muwa.models.clip import Clip
from muwa.models.open_clip_models import load

HOW = "python -m muwa.miniature.twins --without NAME --seeds 0 1 --out DIR"


def load_twins(model: Clip, folders: Sequence[str], key: str, *, least: int = 0) -> list[Clip]:
    """The models in `folders`, on the model's device.

    Args:
        key: Of the config, for messages.
        least: How many are needed.

    Raises:
        ValueError: There are fewer; a folder is given twice or holds no model; or a model differs from `model` in more than
            its weights. Says the command that makes one.
    """
    if len(folders) < least:
        raise ValueError(
            f"{key}: got {len(folders)} models retrained without the forgotten, want at least {least}; of the "
            f"miniature they are made by `{HOW}` (48 minutes each on two cores), then {key}=[DIR/...,DIR/...]"
        )
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{key}: got the same folder twice in {list(folders)}, want models of different seeds")
    twins = []
    for folder in folders:
        try:
            twin = load(f"local-dir:{folder}", device=str(model.device))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{key}: got {folder}, want a folder that open_clip loads; make one: {HOW} ({error})"
            ) from error
        if twin.spec != model.spec:
            raise ValueError(
                f"{key}: {folder} differs from {model.source} in architecture or tokenizer, want the same model retrained; "
                f"only of the miniature is there a command: {HOW}"
            )
        twins.append(twin)
    return twins

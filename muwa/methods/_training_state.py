"""What a stopped training goes on from: one file after each epoch, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.methods._selection import Deltas
from muwa.types.search import Evaluation

FORMAT = "muwa.descent/1"


class Resumable(Protocol):
    """A training that can say where it is and be put there (`muwa.methods._finetune.FineTuning`)."""

    done: int

    def state(self) -> dict[str, Tensor]:
        """Weights and moments, by name."""

    def load(self, state: Mapping[str, Tensor], done: int) -> None:
        """Go on from `state()`, `done` steps in."""


def save(folder: Path | None, descent: Resumable, found: Mapping[str, Deltas], about: Mapping[str, Any]) -> None:
    """Write the state of a training as one file, whole or not at all."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        **descent.state(),
        **{f"kept/{key}/{name}": d for key, deltas in found.items() for name, d in deltas.items()},
    }
    draft = folder / "state.draft"
    text = json.dumps({**about, "done": descent.done, "kept": list(found)})
    save_file(
        {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, draft, metadata={FORMAT: text}
    )
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(draft, folder / "state.safetensors")


def resume(
    folder: Path | None, descent: Resumable, found: dict[str, Deltas]
) -> tuple[int, list[Evaluation], int | None]:
    """(epochs done, their trace, the first feasible epoch); puts weights, moments and kept checkpoints back."""
    path = folder / "state.safetensors" if folder else None
    if path is None or not path.is_file():
        return 0, [], None
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[FORMAT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError):
        return 0, [], None  # not whole: from the start
    descent.load(tensors, about["done"])
    for key in about["kept"]:
        lead = f"kept/{key}/"
        found[key] = {name.removeprefix(lead): t for name, t in tensors.items() if name.startswith(lead)}
    return about["epoch"], [Evaluation(**row) for row in about["trace"]], about["forgot"]

"""The state that an interrupted training resumes from: one checked file, replaced after each epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muwa.drafts import new_file
from muwa.fingerprint import fingerprint
from muwa.methods._edits import Deltas
from muwa.runtime.notices import notice
from muwa.types.search import Candidate, Evaluation
from muwa.types.short import short_repr

FORMAT = "muwa.training_state/3"
FILE = "state.safetensors"
DAMAGE = (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError)


class Resumable(Protocol):
    """A training whose state can be read and set (`muwa.methods._finetune.FineTuning`)."""

    done: int

    def state(self) -> dict[str, Tensor]:
        """The weights and the optimizer's moments, by name."""

    def load(self, state: Mapping[str, Tensor], done: int) -> None:
        """Restore a `state()` that was taken after `done` steps."""


@dataclass
class Position:
    """How far a training has come.

    Args:
        epoch: The current epoch, from 1; between epochs the number of finished ones.
        first_feasible: The epoch of the first feasible evaluation; None before there is one.
        trace: All evaluations so far.
        deltas: str(index in the trace) -> deltas, for the evaluations that can still be selected.
    """

    epoch: int = 0
    first_feasible: int | None = None
    trace: list[Evaluation] = field(default_factory=list)
    deltas: dict[str, Deltas] = field(default_factory=dict)

    __repr__ = short_repr


def save(folder: Path | None, training: Resumable, position: Position) -> None:
    """Write the state of a training to `folder`, atomically. If `folder` is None, nothing is written."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(training.state())
    for key, deltas in position.deltas.items():
        tensors |= {f"deltas/{key}/{name}": delta for name, delta in deltas.items()}
    about = {
        "done": training.done,
        "epoch": position.epoch,
        "first_feasible": position.first_feasible,
        "trace": [asdict(row) for row in position.trace],
        "deltas": list(position.deltas),
    }
    copies = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(about)
    checked = json.dumps({"about": text, "sha256": fingerprint([text, copies])})
    with new_file(folder / FILE) as draft:
        save_file(copies, draft, metadata={FORMAT: checked})


def resume(folder: Path | None, training: Resumable) -> Position:
    """Restore the state that `save` wrote.

    Returns:
        How far the training has come. It starts anew if `folder` has no state, or, with a notice, one that is
        damaged or of another format.
    """
    path = folder / FILE if folder else None
    if path is None or not path.is_file():
        return Position()
    try:
        about, tensors = _read(path)
    except DAMAGE as error:
        notice(f"The saved state of the training is damaged ({error}); the training starts anew")
        return Position()
    training.load(tensors, about["done"])
    trace = [_evaluation(row) for row in about["trace"]]
    deltas = {key: _under(f"deltas/{key}/", tensors) for key in about["deltas"]}
    return Position(about["epoch"], about["first_feasible"], trace, deltas)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(What `save` noted, all tensors), after a look at the checksum.

    Raises:
        ValueError: The file has other bytes than were written.
        Exception: One of `DAMAGE`.
    """
    with safe_open(path, "pt") as file:
        checked = json.loads((file.metadata() or {})[FORMAT])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if fingerprint([checked["about"], tensors]) != checked["sha256"]:
        raise ValueError("it has other bytes than were written")
    return json.loads(checked["about"]), tensors


def _evaluation(row: Mapping[str, Any]) -> Evaluation:
    """The inverse of `asdict`, from JSON."""
    candidate = Candidate(**{**row["candidate"], "names": tuple(row["candidate"]["names"])})
    return Evaluation(**{**row, "candidate": candidate})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Deltas:
    """The tensors whose name starts with `prefix`, under the rest of their name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

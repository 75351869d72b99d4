"""Put patches on a model in memory: what `patches=[...]` does before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from muwa.patch.apply import ADD
from muwa.patch.change import Given, read_given
from muwa.patch.earlier import Lacking, absent, told
from muwa.runtime.notices import notice
from muwa.types.edit import Edit
from muwa.types.request import Request
from muwa.types.short import short_repr

if TYPE_CHECKING:
    from muwa.models.base import Editable


@dataclass(frozen=True)
class Carrying:
    """A model and the requests that it carries.

    Args:
        model: The model with all patches.
        original: The model without any; None if that is not known.
        requests: The requests, in order: those of the loaded weights, then those of the patches.
        edit: The patches that were put on in memory, together.
    """

    model: Editable
    original: Editable | None
    requests: tuple[Request, ...]
    edit: Edit

    __repr__ = short_repr

    @property
    def names(self) -> tuple[str, ...]:
        """All that was forgotten, each name once."""
        return tuple(dict.fromkeys(name for one in self.requests for name in one.names))


def carry(model: Editable, paths: Sequence[str]) -> Carrying:
    """Put patches on a model, one after the other.

    A patch fits if it was made on the loaded weights, with or without others of the patches.

    Args:
        paths: Patch files.

    Raises:
        ValueError, FileNotFoundError: A file is not a patch, fits another model, or is on the model already.
    """
    original = model if not model.requests else _original(model)
    states, requests, edits = [model], list(model.requests), []
    for one in read_given([Path(path) for path in paths]):
        if one.request.sha256 in {before.sha256 for before in requests}:
            raise ValueError(f"patches: {one.path}: {model.source} carries it already")
        edit = Edit(one.patch.deltas, one.patch.moves)
        _check_fits(one, edit, states, requests)
        _tell_what_lacks(one, edit, states, requests)
        states.append(states[-1].edited(edit))
        requests.append(one.request)
        edits.append(edit)
    return Carrying(states[-1], original, tuple(requests), _sum_of(edits, model.requests))


def _original(model: Editable) -> Editable | None:
    """The originals of weights that carry requests, if loading found them."""
    unedited = model.unedited
    return None if unedited.fingerprint == model.fingerprint else unedited


def _check_fits(one: Given, edit: Edit, states: Sequence[Editable], carried: Sequence[Request]) -> None:
    """Raise ValueError unless a patch was made on one of the states, or for the same original weights."""
    try:
        bases = [state.patch_base(edit).weights_fingerprint for state in states]
        weights = states[0].patch_base(edit).weights
        missing = [name for name in edit.deltas if name not in weights]
    except KeyError as error:
        raise ValueError(f"patches: {one.path}: {error.args[0]}") from error
    if missing:
        raise ValueError(f"patches: {one.path}: {missing[0]}: not a parameter of {states[0].source}")
    origins = {before.origin for before in carried} - {""} or {bases[0]}
    if one.patch.base_fingerprint in bases or one.request.origin in origins:
        return
    raise ValueError(
        f"patches: {one.path}: wrong base: {states[0].source} has the fingerprint {bases[0][:12]}, the patch "
        f"was made for {one.patch.base_fingerprint[:12]}. {ADD}"
    )


def _tell_what_lacks(one: Given, edit: Edit, states: Sequence[Editable], carried: Sequence[Request]) -> None:
    """A notice, if a patch was made on top of others that the model does not carry."""
    missing = absent(one.request, {before.sha256 for before in carried})
    if not missing:
        return
    bases = {state.patch_base(edit).weights_fingerprint for state in states} - {one.request.origin}
    if one.request.base_fingerprint not in bases:  # these carry the earlier ones, whatever the record says
        notice(told(one.path, states[0].source, Lacking(missing, checked=True)))


def _sum_of(edits: Sequence[Edit], before: Sequence[Request]) -> Edit:
    """The edits together; the moves of earlier requests first, whose deltas are not known."""
    deltas: dict[str, Tensor] = {}
    for edit in edits:
        for name, delta in edit.deltas.items():
            deltas[name] = deltas[name] + delta if name in deltas else delta
    moves = [move for one in before for move in one.moves]
    return Edit(deltas, (*moves, *(move for edit in edits for move in edit.moves)))

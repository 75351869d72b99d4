"""Shared by methods that edit any weights of a CLIP: training pairs, deltas, and the edit made of deltas."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from muwa.types.data import Pairs, Task
from muwa.types.edit import Edit, Move
from muwa.types.search import Search

Deltas = dict[str, Tensor]  # parameter name -> fp32 change of its shape


def forget_pairs(task: Task) -> Pairs:
    """The forget pairs of all names, one name after the other.

    Raises:
        ValueError: There are no forget pairs.
    """
    sets = [task.forget[name] for name in task.names]
    joined = Pairs(
        tuple(key for pairs in sets for key in pairs.keys),
        tuple(image for pairs in sets for image in pairs.images),
        tuple(caption for pairs in sets for caption in pairs.captions),
    )
    if not len(joined):
        raise ValueError(f"task: no pairs of {', '.join(task.names)} to forget (an empty forget set)")
    return joined


def retain_pairs(task: Task) -> Pairs:
    """`Task.retain_pairs`: the retain set without the pairs that mention a forgotten name.

    Raises:
        ValueError: There are no such pairs.
    """
    pairs = task.retain_pairs()
    if not len(pairs):
        raise ValueError(
            "task: no retain pairs (an empty retain set, or all of it mentions what is to be forgotten)"
        )
    return pairs


def edit_of(task: Task, search: Search, deltas: Mapping[str, Tensor], samples: int) -> Edit:
    """The edit of the chosen evaluation, with one move for each name: all names were forgotten together.

    Args:
        search: What was evaluated and chosen. If nothing was chosen, the edit has no deltas and no moves.
        deltas: The deltas of the chosen evaluation.
        samples: Number of training pairs whose gradient was taken; each counts once per pass.
    """
    if search.chosen is None:
        return Edit({}, (), (search,), samples)
    row = search.trace[search.chosen]
    layer, tower = row.candidate.name, row.candidate.tower
    moves = tuple(Move(name, tower, layer, row.step, row.relative_norm) for name in task.names)
    return Edit({name: delta.cpu() for name, delta in nonzero(deltas).items()}, moves, (search,), samples)


def difference(now: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Deltas:
    """`now - start` in fp32, for the tensors that differ."""
    with torch.no_grad():
        deltas = {name: now[name].detach().float() - weight.float() for name, weight in start.items()}
    return nonzero(deltas)


def nonzero(deltas: Mapping[str, Tensor]) -> Deltas:
    """The deltas that change anything."""
    return {name: delta for name, delta in deltas.items() if delta.any()}

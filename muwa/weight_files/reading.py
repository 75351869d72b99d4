"""Weights by name from one file, and whether they fit a model. No code is unpickled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from muwa.weight_files.diagnosis import SAVE_WEIGHTS, check_file, foreign_objects, pickle_protocol

# The keys under which training scripts keep the weights in a checkpoint.
WEIGHT_KEYS = ("model_state_dict", "state_dict", "model")
# What torch.compile, FSDP, activation checkpointing and Fabric put into the names of a model's weights.
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
_ATTRIBUTE = "model."  # in front of all names: the attribute in which a trainer (Lightning) holds the model
_SHOWN = 3  # names of each kind in a message


def read_tree(path: Path) -> Any:
    """What one weight file holds: tensors by name, or whatever torch.save wrote, with nested dicts.

    Raises:
        ValueError: The file is not what its name says, or holds more than tensors and plain values. Says what
            it is, names the foreign objects, and says how to save the weights anew.
    """
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(why_refused(path)) from error
    except Exception as error:  # damaged bytes end in nearly any error of torch's unpickler
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights alone: {reason}") from error


def why_refused(path: Path) -> str:
    """Why torch refuses to unpickle a file, without its advice to run what is in it: one line."""
    return f"{path}: cannot be read as weights alone: {_foreign(path)}"


def _foreign(path: Path) -> str:
    foreign, protocol = foreign_objects(path), pickle_protocol(path)
    again = f"where it was made, save the weights anew: {SAVE_WEIGHTS}"
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        return f"it holds {', '.join(foreign[:_SHOWN])}{more}, whose code would have to run; {again}"
    if protocol is not None and protocol != 2:
        return f"it was written with pickle protocol {protocol}, want torch.save's own (2); {again}"
    return f"it is no pickle of tensors and plain values; {again}"


def read_state_dict(path: Path, keys: Sequence[str] = WEIGHT_KEYS) -> dict[str, Tensor]:
    """The weights in one file by their plain names (`plain_names`), whichever of `keys` they are under.

    "model." in front of all names is removed too.

    Raises:
        ValueError: The file cannot be read (`read_tree`), or holds no weights.
    """
    tree = read_tree(path)
    while isinstance(tree, Mapping) and (below := [k for k in keys if isinstance(tree.get(k), Mapping)]):
        tree = tree[below[0]]
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path}: holds a {type(tree).__name__}, want weights by name: {SAVE_WEIGHTS}")
    others = [
        f"{key} ({type(value).__name__})" for key, value in tree.items() if not isinstance(value, Tensor)
    ]
    if others or not tree:
        raise ValueError(
            f"{path}: no weights in it; looked at its top and under {', '.join(keys)}, found "
            f"{', '.join(others[:_SHOWN]) or 'nothing'}"
        )
    weights = plain_names(tree)
    if all(name.startswith(_ATTRIBUTE) for name in weights):
        weights = {name.removeprefix(_ATTRIBUTE): tensor for name, tensor in weights.items()}
    return weights


def plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the names that the model itself gives them.

    What wrappers of a model add to names is removed: `WRAPPERS` at any depth, and "module." in front.

    >>> list(plain_names({"module._orig_mod.visual.proj": torch.ones(1)}))
    ['visual.proj']
    """
    kept = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in weights}
    return {".".join(kept[name]).removeprefix("module."): tensor for name, tensor in weights.items()}


def shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def misfit(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> str:
    """How the weights of a file differ from those that a model wants, with the first names of each kind.

    Args:
        found: Name -> shape in the file.
        wanted: Name -> shape in the model.

    Returns:
        A clause; "" if they fit.

    >>> misfit({"a": (2,), "c": (1,)}, {"a": (3,), "b": (1,)})
    '1 missing: b; 1 unexpected: c; 1 of another shape: a (2,), want (3,)'
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    common = {name: (found[name], wanted[name]) for name in wanted if name in found}
    other = [(name, *both) for name, both in common.items() if tuple(both[0]) != tuple(both[1])]
    return differences(missing, unexpected, other)


def differences(
    missing: Collection[str],
    unexpected: Collection[str],
    other: Collection[tuple[str, Sequence[int], Sequence[int]]],
) -> str:
    """The first names of each kind of difference, with how many there are; "" if there are none.

    Args:
        missing: Names that the model wants and the file lacks.
        unexpected: Names that only the file has.
        other: (name, shape in the file, shape in the model) where the shapes differ.
    """
    differ = [f"{name} {tuple(got)}, want {tuple(want)}" for name, got, want in other]
    parts = [
        f"{len(missing)} missing: {_first(missing)}" if missing else "",
        f"{len(unexpected)} unexpected: {_first(unexpected)}" if unexpected else "",
        f"{len(differ)} of another shape: {_first(differ)}" if differ else "",
    ]
    return "; ".join(part for part in parts if part)


def _first(names: Iterable[str]) -> str:
    given = list(names)
    return ", ".join(given[:_SHOWN]) + (", ..." if len(given) > _SHOWN else "")

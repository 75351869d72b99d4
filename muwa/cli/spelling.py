"""Misspelt settings and choices, found in the config files before anything is composed.

Hydra answers them with several lines, and with `+sead=1` as what to type. What is said here is one line with
the nearest names. A word that could be right is left to Hydra.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

_PLAIN = re.compile(r"\[?[\w\-]+(?:,\s*[\w\-]+)*\]?")  # one choice, a sweep over choices, or a list of them


def check_spelling(word: str, folders: Sequence[Path]) -> None:
    """Raise if an override names a setting or a choice that no config has.

    Args:
        word: "KEY=VALUE", as typed. Additions (`+`), deletions (`~`) and settings of Hydra are passed.
        folders: Folders with configs: muwa's, which has config.yaml, then the user's own.

    Raises:
        ValueError: Gives the nearest names.
    """
    key, _, value = word.partition("=")
    first, _, rest = key.partition(".")
    if key.startswith(("+", "~")) or "@" in key or re.split(r"[./]", key)[0] == "hydra":
        return
    root = _read(folders[0] / "config.yaml")
    groups = {path.name for folder in folders for path in folder.glob("*") if path.is_dir()} - {"hydra"}
    if first not in groups | set(root):  # a setting without its group is given with it
        held = {**root, **{group: list(_files_of(group, folders)) for group in sorted(groups)}}
        inside = [f"{name}.{key}" for name, node in held.items() if _has(node, key)]
        if inside:
            raise ValueError(f"{word}: {key!r} is no setting or group; nearest: {', '.join(inside[:5])}")
        raise ValueError(_unknown(word, first, groups | set(root), "setting or group"))
    if not rest:
        if first in groups and _PLAIN.fullmatch(value):
            _check_choices(word, first, re.findall(r"[\w\-]+", value), folders)
        return
    nodes = [root[first]] if first in root else list(_files_of(first, folders))
    paths = {path for node in nodes for path in _paths(node, ends=False)}
    ends = {path for node in nodes for path in _paths(node, ends=True)}
    if paths and rest not in paths and not any(rest.startswith(f"{end}.") for end in ends):
        raise ValueError(_unknown(word, rest, paths, f"setting of {first}", prefix=f"{first}."))


def _check_choices(word: str, group: str, given: Iterable[str], folders: Sequence[Path]) -> None:
    names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    for name in given:
        if name not in names and name != "null":
            raise ValueError(_unknown(word, name, names, f"choice of {group}", prefix=f"{group}="))


def choices_with(group: str, setting: str, folders: Sequence[Path]) -> list[str]:
    """The choices of a group whose config has a setting, by its dotted name."""
    files = [path for folder in folders for path in sorted((folder / group).glob("*.yaml"))]
    return [path.stem for path in files if setting in _paths(_read(path), ends=False)]


def _unknown(word: str, name: str, known: Iterable[str], what: str, prefix: str = "") -> str:
    near = _nearest(name, known)
    listed = "--cfg job prints them" if what.startswith("setting of") else "--help lists them"
    nearest = f"nearest: {', '.join(prefix + one for one in near)}" if near else listed
    return f"{word}: {name!r} is no {what}; {nearest}"


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """The three nearest of some names; capital letters do not matter."""
    folded = {one.casefold(): one for one in sorted(known)}
    return [folded[one] for one in difflib.get_close_matches(name.casefold(), list(folded), 3, 0.6)]


def _has(node: Any, key: str) -> bool:
    """Whether a mapping of the config, or one file of a group, has the setting."""
    files = node if isinstance(node, list) else [node]
    return any(key in _paths(file, ends=False) for file in files)


def _files_of(group: str, folders: Sequence[Path]) -> Iterator[Any]:
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            yield _read(path)


def _read(path: Path) -> dict[str, Any]:
    return {key: value for key, value in loaded(path).items() if key not in ("defaults", "hydra")}


def loaded(path: Path) -> dict[str, Any]:
    """A config file as plain values. They are shared: change none of them."""
    state = path.stat()
    return _loaded(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1000)
def _loaded(path: Path, time: int, size: int) -> dict[str, Any]:
    """A file is read again when its time or size has changed."""
    return yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def _paths(node: Any, *, ends: bool, before: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings; with `ends`, only those that hold no further keys in the file.

    Below such an end there may be keys that the file does not show: a reference (`${...}`), or a mapping of
    names.
    """
    for key, value in node.items() if isinstance(node, Mapping) else ():
        path = f"{before}{key}"
        inner = isinstance(value, Mapping) and len(value) > 0
        if not (ends and inner):
            yield path
        if inner:
            yield from _paths(value, ends=ends, before=f"{path}.")

"""Find settings of the command line that nothing in a run uses, such as `learning_rate` with method=slug.

Settings outside the parts of a run (model, task, method, ...) reach them by references: `${learning_rate}` in
conf/method/ft.yaml. Such a setting has no effect in a run whose parts, as composed, do not refer to it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_REFERENCE = re.compile(r"\$\{(?:[\w.]+:)?(\w[\w.]*)\}")  # ${seed}, ${oc.select:seed}


def unused(
    words: Sequence[str], written: Mapping[str, Any], parts: Collection[str], folders: Sequence[Path]
) -> dict[str, list[str]]:
    """The overrides that have no effect -> the choices that would use them, as "method=ft|ga".

    Overrides of a part itself are not among them: its signature refuses what it does not know. Nor are those
    of settings that no choice of a group refers to, or that config.yaml refers to: the frame reads those.

    Args:
        words: The overrides, as typed: "learning_rate=1e-4".
        written: The composed config as it is written, with its references.
        parts: The groups that a run is made of.
        folders: Folders with configs: muwa's, which has config.yaml, then the user's own.
    """
    reached = _reached(written, parts) | {*_references_in((folders[0] / "config.yaml").read_text("utf-8"))}
    found: dict[str, list[str]] = {}
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        if key.partition(".")[0] in parts or any(_overlap(key, one) for one in reached):
            continue
        if users := _users(key, folders):
            found[word] = users
    return found


def _overlap(one: str, two: str) -> bool:
    """Whether one of two keys holds the other: "whitening" and "whitening.damping"."""
    return f"{one}.".startswith(f"{two}.") or f"{two}.".startswith(f"{one}.")


def _reached(written: Mapping[str, Any], parts: Collection[str]) -> set[str]:
    """The keys that the parts refer to, and those that these refer to in turn."""
    reached: set[str] = set()
    waiting = [written[name] for name in parts if name in written]
    while waiting:
        for key in {*_references(waiting.pop())} - reached:
            reached.add(key)
            waiting.append(_at(written, key))
    return reached


def _at(written: Mapping[str, Any], key: str) -> Any:
    """The node at a dotted key; None if there is none."""
    node: Any = written
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _references(node: Any) -> Iterator[str]:
    """The keys that a node refers to, at any depth."""
    if isinstance(node, str):
        yield from _references_in(node)
    elif isinstance(node, Mapping | list):
        for inner in node.values() if isinstance(node, Mapping) else node:
            yield from _references(inner)


def _references_in(text: str) -> list[str]:
    return _REFERENCE.findall(text)


def _users(key: str, folders: Sequence[Path]) -> list[str]:
    """The choices whose config refers to a key: one text for each group."""
    users: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.yaml")):
            refers = any(_overlap(key, one) for one in _references_in(path.read_text("utf-8")))
            if refers and path.parent.name != "hydra":
                users.setdefault(path.parent.name, []).append(path.stem)
    return [f"{group}={'|'.join(names)}" for group, names in users.items()]

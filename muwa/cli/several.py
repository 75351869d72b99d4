"""Whether a setting takes a list, or one text with a comma, where a command line gives several values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from muwa.cli.spelling import loaded
from muwa.settings.signatures import check_value
from muwa.settings.source_signatures import source_signature


def takes(key: str, value: object, folders: Sequence[Path]) -> bool:
    """Whether a value may be given for a setting, as far as the config files tell.

    Args:
        key: The setting ("seed", "task.identity") or the group ("eval").
        value: A list of values, or one text.
        folders: Folders with configs: muwa's, which has config.yaml, then the user's own.

    Returns:
        True too for a setting that no file has, and where a file does not tell what it takes.
    """
    first, _, rest = key.partition(".")
    root = loaded(folders[0] / "config.yaml")
    files = [path for folder in folders for path in sorted((folder / first).glob("*.yaml"))]
    if files and not rest:  # a group: some take several choices
        chosen = [one[first] for one in root["defaults"] if isinstance(one, Mapping) and first in one]
        return isinstance(value, list) and any(isinstance(one, list) for one in chosen)
    names = rest.split(".") if files else key.split(".")
    nodes = map(loaded, files) if files else [root]
    found = [answer for node in nodes for answer in _answers(node, names, value)]
    return any(found) or not found


def _answers(node: Any, names: Sequence[str], value: object) -> Iterator[bool]:
    """Whether the setting at the path `names` takes the value; nothing if the node has no such setting."""
    annotation: Any = None
    for name in names:
        if not isinstance(node, Mapping) or name not in node:
            return
        target = node.get("_target_")
        signature = source_signature(target) if isinstance(target, str) else None
        parameter = signature.signature.parameters.get(name) if signature else None
        annotation, node = parameter.annotation if parameter else None, node[name]
    if annotation is None or annotation is Any:
        yield isinstance(value, list) if isinstance(node, list) else _like(node, value)
        return
    try:
        check_value("", annotation, value)
    except ValueError:
        yield False
    else:
        yield True


def _like(default: object, value: object) -> bool:
    """Whether a value is of the kind of a default that is no list; null stands for a text."""
    return isinstance(value, str) and (default is None or isinstance(default, str))

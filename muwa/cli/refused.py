"""One line for what Hydra refuses while it composes a config. Hydra itself says it in several lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from muwa.cli.spelling import choices_with
from muwa.settings.signatures import check_value

NOTHING = object()


@dataclass(frozen=True)
class Refusal:
    """What Hydra refused.

    Args:
        key: The full key of the setting; "" if Hydra gives none.
        said: What Hydra says of it, in one line or several.
        value: The value that does not fit; `NOTHING` if it is not the value.
        unknown: Whether no chosen config has the key.
        options: The choices that there are, if one was asked for that does not exist.
    """

    key: str
    said: str
    value: Any = NOTHING
    unknown: bool = False
    options: Sequence[str] = ()


def in_one_line(
    found: Refusal, words: Sequence[str], folders: Sequence[Path], root: type, ranges: Mapping[str, Any]
) -> str:
    """The line: what was typed, what is wrong with it, and what is wanted.

    Args:
        words: The command line.
        folders: Folders with configs: muwa's, then the user's own.
        root: The typed root of the config, a dataclass.
        ranges: Key -> annotation of the settings whose range is narrower than the type of `root` says.
    """
    word = _typed(found.key, words)
    if found.options:
        return f"{word or found.key}: want one of {', '.join(found.options)}"
    group, _, setting = word.partition("=")[0].lstrip("+~").partition(".")
    if found.unknown and (having := choices_with(group, setting, folders)):
        users = f"{group}={'|'.join(having)}"
        return f"{word}: {setting!r} is no setting of the {group} in use; it is one of {users}"
    if found.value is not NOTHING and (wanted := ranges.get(found.key, _annotation(root, found.key))):
        if is_dataclass(wanted):
            return f"{word}: want one of its settings, {found.key}.{fields(wanted)[0].name}=VALUE"
        try:
            check_value(found.key, wanted, found.value)
        except ValueError as error:
            return str(error)
    first = found.said.strip().partition("\n")[0]
    place = word or found.key
    return f"{place}: {first}" if place else first


def _typed(key: str, words: Sequence[str]) -> str:
    """The word that gives the setting `key`, or one below it; "" if there is none."""
    for word in words:
        name = word.partition("=")[0].lstrip("+~")
        if key and "=" in word and (name == key or name.startswith(f"{key}.")):
            return word
    return ""


def _annotation(root: type, key: str) -> Any:
    """The annotation of a setting in nested dataclasses; None if there is none."""
    found: Any = root
    for name in key.split("."):
        found = get_type_hints(found).get(name) if is_dataclass(found) else None
    return None if found is Any else found

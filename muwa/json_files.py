"""Read JSON that a user or a stranger wrote: each fault names the file and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

_Kind = TypeVar("_Kind", dict, list, object)
_NAMES: dict[type, str] = {dict: "an object", list: "a list", object: "any value"}


def read_json(path: Path, kind: type[_Kind], wanted: str) -> _Kind:
    """The content of a JSON file in UTF-8.

    Args:
        kind: dict for a JSON object, list for a JSON list, object for any value.
        wanted: What the file should be, for the message: "a manifest of muwa".

    Raises:
        ValueError: It is not UTF-8, not JSON, nested too deeply, or another kind of value.
        OSError: It cannot be read, or is not a regular file: to read a pipe might never end.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: not a regular file, want {wanted}")
    return parse_json(path.read_bytes(), str(path), kind, wanted)


def parse_json(text: str | bytes, where: str, kind: type[_Kind], wanted: str) -> _Kind:
    """The value of a JSON text; as `read_json`.

    Args:
        where: Where the text comes from, for the message.

    Raises:
        ValueError: See `read_json`.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where}: not readable (JSON that is nested too deeply), want {wanted}") from error
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError(f"{where}: not JSON ({error}), want {wanted}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{where}: got a {type(value).__name__}, want {_NAMES[kind]}: {wanted}")
    return value

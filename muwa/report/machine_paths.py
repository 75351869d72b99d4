"""Settings without the folders of this machine and without who asked, for services that show them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# An absolute path inside a longer text: at its start, or after a space, a quote, a bracket, a comma or "=".
_INSIDE = re.compile(r"""(?:^|(?<=[=\s'"\[({,]))/[^\s'",\])}]+""")


def without_folders(value: Any) -> Any:
    """The same value with `…/NAME` in place of every absolute path, at any depth.

    Args:
        value: Plain values, mappings and lists.

    >>> without_folders({"root": "/home/ada/faces", "shards": ["/data/{0..9}.tar"], "at": "out/a", "n": 3})
    {'root': '…/faces', 'shards': ['…/{0..9}.tar'], 'at': 'out/a', 'n': 3}
    """
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    return _shortened(value) if isinstance(value, str) else value


def command_without_folders(command: str) -> str:
    """A shell command with `…/NAME` in place of every absolute path; a path may hold spaces.

    >>> command_without_folders("python /opt/launch.py 'dataset.root=/home/ada fox/faces' model=clip")
    "python '…/launch.py' 'dataset.root=…/faces' model=clip"
    """
    return shlex.join(map(_shortened, shlex.split(command)))


def without_request(command: str) -> str:
    """A shell command without the settings of `request`, which say who asked to forget.

    >>> without_request("python launch.py request.id=7 'request.operator=Ada Ltd' seed=1")
    'python launch.py seed=1'
    """
    return shlex.join(word for word in shlex.split(command) if not word.lstrip("+").startswith("request."))


def last_folders(path: str, count: int) -> str:
    """The last `count` names of an absolute path; any other text as it is.

    >>> last_folders("/home/ada/outputs/runs/2026-11-26/04-44-12", 3), last_folders("my group", 3)
    ('runs/2026-11-26/04-44-12', 'my group')
    """
    return "/".join(path.split(os.sep)[-count:]) if os.path.isabs(path) else path


def shown_folder(folder: Path) -> str:
    """The folder of a run or of a multirun, as its page names it: the last three names of its path.

    >>> shown_folder(Path("/home/ada/outputs/runs/2026-11-26/04-44-12")), shown_folder(Path("/sweep"))
    ('runs/2026-11-26/04-44-12', 'sweep')
    """
    return last_folders(os.path.abspath(folder), 3).strip("/")


def _shortened(text: str) -> str:
    key, sign, value = text.partition("=")
    if os.path.isabs(text):
        return _name(text)
    if sign and os.path.isabs(value):
        return f"{key}={_name(value)}"
    return _INSIDE.sub(lambda match: _name(match[0]), text)


def _name(path: str) -> str:
    return f"…/{os.path.basename(path.rstrip(os.sep))}"

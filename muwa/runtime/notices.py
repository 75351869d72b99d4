"""Lines on stderr that tell the user what muwa does with the data, such as what is left out."""

from __future__ import annotations

import sys

from muwa.runtime.ranks import is_worker

_SAID: set[str] = set()


def notice(text: str) -> None:
    """Print one line, once a process. Worker ranks print nothing: rank 0 reads the same data."""
    if text not in _SAID and not is_worker():
        _SAID.add(text)
        print(f"muwa: {text}", file=sys.stderr)


def some(things: list[str], count: int = 3) -> str:
    """The first of some things, as a list for a message.

    >>> some(["a", "b"]), some(["a", "b", "c", "d"])
    ('a, b', 'a, b, c, ...')
    """
    return ", ".join([*things[:count], *["..."] * (len(things) > count)])

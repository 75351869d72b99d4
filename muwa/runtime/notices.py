"""Lines on stderr that tell the user what muwa does with the data, such as what is left out."""

from __future__ import annotations

import logging
import sys

from muwa.runtime.ranks import is_worker

log = logging.getLogger(__name__)
_SAID: set[str] = set()


def notice(text: str) -> None:
    """Print one line, once a process, and log it. Worker ranks print nothing: rank 0 reads the same data."""
    if text not in _SAID and not is_worker():
        _SAID.add(text)
        log.info(text)
        print(f"muwa: {text}", file=sys.stderr)


def some(things: list[str], count: int = 3) -> str:
    """The first of some things, as a list for a message.

    >>> some(["a", "b"]), some(["a", "b", "c", "d"])
    ('a, b', 'a, b, c, ...')
    """
    return ", ".join([*things[:count], *["..."] * (len(things) > count)])


class Stderr(logging.Handler):
    """Prints log records on stderr, each in a line that begins with the package that logged it.

    It looks `sys.stderr` up for each record, so a progress bar on a terminal stays below the lines.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        print(f"{record.name.partition('.')[0]}: {self.format(record)}", file=sys.stderr, flush=True)

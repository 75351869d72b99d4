"""What muwa tells the user besides results: what it left out, read in another way, or could not do.

A notice is a warning of the log "muwa", so it is on the console and in launch.log. The record of a run
(results.json, the report) keeps it too.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from muwa.runtime.ranks import is_worker

log = logging.getLogger("muwa")
_RECORDS: list[list[str]] = []  # that of the run that goes on, if one does


def notice(text: str) -> None:
    """Log one line, once a run. Worker ranks say nothing: rank 0 reads the same data."""
    if is_worker():
        return
    if _RECORDS:
        if text in _RECORDS[-1]:
            return
        _RECORDS[-1].append(text)
    if log.hasHandlers():
        log.warning("%s", text)
    else:  # no one has set up logging: the commands other than a run, Python
        print(f"muwa: {text}", file=sys.stderr)


@contextlib.contextmanager
def recorded_notices() -> Iterator[list[str]]:
    """Yield the list to which each notice of the `with` block is added. A block in another has its list."""
    if _RECORDS:
        yield _RECORDS[-1]
        return
    _RECORDS.append([])
    try:
        yield _RECORDS[-1]
    finally:
        _RECORDS.pop()


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

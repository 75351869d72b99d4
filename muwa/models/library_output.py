"""What model libraries print while they load: progress is silenced, each warning becomes one line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator

from muwa.runtime.notices import notice

# Loggers that print on their own, besides the root logger. A warning of any other reaches the root logger.
_LIBRARIES = ("", "transformers", "diffusers", "huggingface_hub", "open_clip", "timm", "torch", "accelerate")
# Python's own rule: these are for the developers of the libraries, all others are for users.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REPORT = "loading_report"  # transformers' table of names that do not fit: `muwa.models.pretrained` says them
_LONGEST = 300  # characters of a line


class _Collector(logging.Handler):
    """Keeps the messages of a level from WARNING on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        if record.module != _REPORT:
            self.messages.append(record.getMessage())


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence libraries in a `with` block that loads a model, and log their warnings when it is done.

    Standard error, where they show their progress, goes nowhere. Standard input is empty: no library can wait
    for an answer. Each different warning becomes a notice of one line. A warning is not lost: it may
    say that the model is not the one that was meant. Worker ranks log nothing. Nothing is logged if
    the block raises: the error says what is wrong.
    """
    collector = _Collector()
    stdin = sys.stdin
    try:
        sys.stdin = io.StringIO("")
        with (
            _handled_by(collector),
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        sys.stdin = stdin
    given = [str(one.message) for one in caught or [] if not issubclass(one.category, _FOR_DEVELOPERS)]
    for line in dict.fromkeys(map(one_line, [*given, *collector.messages])):
        notice(line)


@contextlib.contextmanager
def _handled_by(collector: logging.Handler) -> Iterator[None]:
    """Let one handler receive what the libraries log, in place of their own handlers."""
    once = getattr(
        logging.Logger, "warning_once", None
    )  # transformers': it would say nothing the second time
    if once is not None:
        once.cache_clear()
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [(one, one.handlers, one.propagate) for one in loggers]
    try:
        for one in loggers:
            one.handlers, one.propagate = [collector], False
        yield
    finally:
        for one, handlers, propagate in before:
            one.handlers, one.propagate = handlers, propagate


def one_line(text: str) -> str:
    """A message on one line, without colour codes; after 300 characters it is cut between two words.

    >>> one_line("\\x1b[1mtwo\\x1b[0m\\n  lines")
    'two lines'
    """
    line = " ".join(_COLOURS.sub("", text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rpartition(' ')[0] or line[:_LONGEST]} ..."

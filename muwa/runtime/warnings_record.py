"""The warnings that muwa logs during a run, for the record of the run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, once."""
        if (text := record.getMessage()) not in self.messages:
            self.messages.append(text)


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Yield a list to which every warning that a module of muwa logs in the `with` block is added, once."""
    logger, recorder = logging.getLogger("muwa"), _Recorder()
    logger.addHandler(recorder)
    try:
        yield recorder.messages
    finally:
        logger.removeHandler(recorder)

"""Ctrl-C and SIGTERM end a command in order, with one line: what was stopped, what is kept, how to go on.

    with stopping.one_line("muwa.patch", "No file is left half-written: type the same command again."):
        main()

A signal raises `Stopped`, so that every `with` block and `finally` cleans up. Slurm and `torchrun` send
SIGTERM before they kill, a closed terminal sends SIGHUP. This module imports no torch: a signal during the
imports of a command must find it there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from muwa.runtime.ranks import is_worker

WORDS: Mapping[int, str] = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    getattr(signal, "SIGHUP", signal.SIGTERM): "SIGHUP" if hasattr(signal, "SIGHUP") else "SIGTERM",
}  # the signals that ask a process to end, as a user calls them
_FREE = (signal.SIG_DFL, signal.default_int_handler)  # handlers of a signal that nobody took
_OURS: list[Any] = []  # handlers of `leave_at_once`
_CAME: list[int] = []  # signals that raised `Stopped` in the block of `listening`
_ADVICE: list[str] = []  # what the line says last; a command may learn it only after its start


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end.

    It is a KeyboardInterrupt, so that libraries treat it as Ctrl-C, and no `except Exception` takes it.

    Args:
        number: The signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def leave_at_once(program: str) -> None:
    """Let a signal end this process with one line, until `one_line` takes over.

    Call it before the imports of a command, which may take seconds: an exception there gives a traceback.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if not is_worker():
            os.write(2, f"{program}: stopped by {WORDS[number]}. Nothing was done.\n".encode())
        os._exit(128 + number)

    for number in WORDS:
        if signal.getsignal(number) in _FREE:
            signal.signal(number, leave)
            _OURS.append(leave)


@contextmanager
def one_line(program: str, advice: str) -> Iterator[None]:
    """End a command that is stopped with one line on stderr, and with 130 (Ctrl-C) or 143 (SIGTERM).

    Worker ranks of torchrun say nothing: the main rank does.

    Args:
        program: The first word of the line.
        advice: What is kept and how to go on, unless `advise` has said more.
    """
    try:
        with listening():
            yield
    except KeyboardInterrupt as stop:
        stage = stage_of(stop)
        where = f" in stage '{stage}'" if stage else ""
        if not is_worker():
            with suppress(OSError):  # the terminal is gone
                said = _ADVICE[-1] if _ADVICE else advice
                print(f"{program}: stopped by {word(stop)}{where}. {said}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number_of(stop)) from None


@contextmanager
def listening() -> Iterator[None]:
    """Let the signals that ask a process to end raise `Stopped` in this block.

    A signal that somebody else handles stays theirs (submitit's SIGTERM, `nohup`). Nothing happens outside
    the main thread, where Python takes no handlers.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        now = {number: signal.getsignal(number) for number in WORDS}
        before = {number: handler for number, handler in now.items() if handler in (*_FREE, *_OURS)}
    for number in before:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        _CAME.clear()
        for number, handler in before.items():  # `leave_at_once` would say that nothing was done
            signal.signal(number, signal.SIG_DFL if handler in _OURS else handler)


def _raise(number: int, frame: FrameType | None) -> None:
    """Raise `Stopped`. From now on a second Ctrl-C ends the process at once.

    A second SIGTERM does not: Slurm and torchrun send several, and then kill whom they did not end.
    """
    for each in WORDS:
        if signal.getsignal(each) is _raise:
            signal.signal(each, signal.SIG_DFL if each == signal.SIGINT else _pass)
    _CAME.append(number)
    raise Stopped(number)


def check() -> None:
    """Raise `Stopped` if a signal came before.

    Python swallows an exception that a signal raises in a destructor, as may happen while libraries are
    imported: the work would go on. Long work calls this now and then.
    """
    if _CAME:
        raise Stopped(_CAME[-1])


@contextmanager
def errors_of_a_stop() -> Iterator[None]:
    """In this block, an error that comes after a signal is taken for the stop.

    Where Python swallowed the stop (`check`), what it interrupted is half done and may fail later: a module
    that was half imported lacks a name.
    """
    try:
        yield
    except Exception:
        check()
        raise


def _pass(number: int, frame: FrameType | None) -> None:
    """Do nothing. Unlike SIG_IGN, it is silent when the signal has come already and waits to be handled."""


@contextmanager
def also_told(note: Callable[[], None]) -> Iterator[None]:
    """Call `note` when a SIGTERM comes that somebody else handles, before their handler.

    In a job of submitit, SIGTERM means that Slurm will kill the process soon (scancel, preemption). submitit
    lets it work on until then.
    """
    theirs = signal.getsignal(signal.SIGTERM)
    if not callable(theirs) or theirs is _raise:
        yield
        return

    def both(number: int, frame: FrameType | None) -> Any:
        note()
        return theirs(number, frame)

    signal.signal(signal.SIGTERM, both)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, theirs)


def advise(text: str) -> None:
    """Set what the line of `one_line` says of what is kept and how to go on."""
    _ADVICE.append(text)


def stage_of(stop: BaseException) -> str:
    """The cache stage that was being computed; "" between stages.

    The cache notes on the exception each stage that it passes; the last is the outermost.
    """
    return getattr(stop, "__notes__", [""])[-1]


def word(stop: KeyboardInterrupt) -> str:
    """What stopped a process, as a user calls it.

    >>> word(KeyboardInterrupt()), word(Stopped(signal.SIGTERM))
    ('Ctrl-C', 'SIGTERM')
    """
    return WORDS[number_of(stop)]


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal that stopped a process. Without `listening`, Python raises a plain KeyboardInterrupt."""
    return stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)


def deafen() -> None:
    """Let processes that this thread starts get no Ctrl-C, which a terminal sends to them too.

    Their parent ends them, so that they can clean up and print no traceback.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextmanager
def deaf_children() -> Iterator[None]:
    """`deafen` for the processes that are started in this block. The Ctrl-C itself comes after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

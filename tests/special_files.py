"""Files that are no regular files, and a limit of time for what reads them."""

import os
import signal
import socket
from contextlib import contextmanager
from pathlib import Path


def fifo(path: Path) -> None:
    """A pipe: to open it waits for a writer that never comes."""
    os.mkfifo(path)


def bound_socket(path: Path) -> None:
    """A socket. Its name may have 107 bytes at most, so it is made from within its folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(before)


def endless(path: Path) -> None:
    """A link to a device that never ends."""
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    """A link to nothing."""
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    """A link to itself."""
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    """A folder with the name of a file."""
    path.mkdir()


SPECIAL = (fifo, bound_socket, endless, dangling, loop, folder)


@contextmanager
def in_time(seconds: int):
    """Fail if the block takes longer: a read of a pipe never ends."""

    def late(*_):
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

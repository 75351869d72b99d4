"""Load large libraries in less time."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """In this block, Python looks for no garbage. Afterwards it leaves out all objects that are there.

    The objects of a library live as long as the process. To look for garbage among them, again and again,
    takes a second of a run. What else is there, such as the config and the data set, is small. Where torch
    is imported already, nothing changes: some of the objects may be garbage of an earlier run.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries that count their objects at the end expect it
        gc.enable()

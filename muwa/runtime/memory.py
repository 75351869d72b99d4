"""The most memory that was in use at once, of a stretch of a process' life."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: str) -> None:
    """From here on `peak_memory` is of what is still to come. Where the kernel has no such reset (anything but Linux, or a
    container that forbids it), it stays the peak of the process since it began."""
    with suppress(OSError):
        _RESET.write_text("5")
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """Bytes: the peak of resident memory; of a GPU the peak of allocated device memory is added.

    Args:
        device: "cpu", "cuda" or "cuda:1".
    """
    return _resident() + (torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0)


def _resident() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):  # the kernel's high-water mark, in kB
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

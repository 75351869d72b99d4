"""The peak memory of a process since the last reset."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak(device: str) -> None:
    """Reset the peak that `peak_memory` gives.

    Outside Linux, and in a container that forbids it, this has no effect: the peak is that since the process
    started.

    Args:
        device: "cpu", "cuda" or "cuda:1".
    """
    with suppress(OSError):
        _RESET.write_text("5")
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> int:
    """Bytes: the peak of resident memory; with a GPU, plus the peak of allocated GPU memory.

    Args:
        device: "cpu", "cuda" or "cuda:1".
    """
    return _resident() + (torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0)


def _resident() -> int:
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):  # peak resident set size, in kB
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

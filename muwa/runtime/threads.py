"""How the threads of a process share a machine. Imports no torch: it must act before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# Settings of how threads wait for each other, in GNU's, LLVM's and Intel's OpenMP. A user may have set one.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = 5_000  # a few microseconds


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for each other give up their core soon. Call it before torch is imported.

    By default, GNU's OpenMP lets a waiting thread spin 300,000 times, about half a millisecond, before it
    sleeps. Beside another busy process, the thread that the others wait for then has no core to run on:
    `python -m bench.neighbours` shows what that costs. A setting of the user's is left alone.
    """
    if not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def available(environment: MutableMapping[str, str] = os.environ) -> int:
    """The number of cores that this process may use.

    It is the least of what the process is bound to, its container's quota (both by `joblib.cpu_count`), and
    what Slurm gave each task. Slurm may not confine a process to it.
    """
    import joblib

    cores = joblib.cpu_count()
    given = environment.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(cores, int(given))) if given.isdigit() else cores

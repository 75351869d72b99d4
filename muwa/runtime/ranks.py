"""The rank of this process among those that torchrun started, without importing torch."""

from __future__ import annotations

import os


def is_worker() -> bool:
    """Whether torchrun started this process as a worker rank, that is, not as rank 0."""
    return int(os.environ.get("RANK", "0")) > 0

"""Whether torch can use a device of this machine."""

from __future__ import annotations

import torch


def check_device(device: str) -> None:
    """Raise if torch cannot use `device` on this machine.

    Raises:
        ValueError: It cannot; lists the devices that there are.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA raises AssertionError
        available = f"cpu, {torch.cuda.device_count()} CUDA devices"
        raise ValueError(
            f"runtime.device={device}: not usable here ({str(error).splitlines()[0]}); there is {available}"
        ) from error

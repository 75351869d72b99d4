"""The floating-point types that a pipeline or a vision-language model can be loaded in."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_named(name: str) -> torch.dtype:
    """The type that the setting `model.dtype` names.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in DTYPES:
        raise ValueError(f"model.dtype: got {name!r}, want one of {', '.join(DTYPES)}")
    return DTYPES[name]

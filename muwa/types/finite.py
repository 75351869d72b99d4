"""NaN and infinity are refused where they come in, with the name of the tensor that holds them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise if a tensor holds NaN or infinity.

    Args:
        what: What the tensors are, for the message: "forget gradient".

    Raises:
        ValueError: Names the first such tensor, and counts its values and the tensors.
    """
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        values = tensors[bad[0]]
        count = int((~values.isfinite()).sum())
        raise ValueError(
            f"{what} {bad[0]}: {count} of {values.numel()} values are NaN or infinite "
            f"({len(bad)} of {len(tensors)} tensors have such values)"
        )

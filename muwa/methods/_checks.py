"""Checks of settings that several methods share. Each raises before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from muwa.models.clip.layers import GRANULARITIES
from muwa.run import Run


def check_at_least(bounds: Mapping[str, tuple[float, float]]) -> None:
    """Raise if a setting is below its lowest allowed value, or infinite.

    Args:
        bounds: Name of a setting of the method -> (its value, its lowest allowed value).

    Raises:
        ValueError: Names the first such setting.
    """
    for key, (value, least) in bounds.items():
        if not least <= value < float("inf"):
            raise ValueError(f"method.{key}: got {value}, want at least {least}")


def check_above_zero(values: Mapping[str, float]) -> None:
    """Raise if a setting is not a finite number above 0.

    Args:
        values: Name of a setting of the method -> its value.

    Raises:
        ValueError: Names the first such setting.
    """
    for key, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"method.{key}: got {value}, want a number above 0")


def check_each_above_zero(key: str, values: Sequence[float]) -> None:
    """Raise if a list of settings is empty, or one of them is not a finite number above 0.

    Raises:
        ValueError: Names the list, or the first such element ("method.scales[1]: got -1, ...").
    """
    if not values:
        raise ValueError(f"method.{key}: got none, want at least one")
    check_above_zero({f"{key}[{i}]": value for i, value in enumerate(values)})


def check_granularity(granularity: str) -> None:
    """Raise if the granularity, which says what counts as one layer of a CLIP, is unknown.

    Raises:
        ValueError: Lists the known granularities.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"method.granularity: got {granularity!r}, want one of {', '.join(GRANULARITIES)}")


def refuse_gradient_file(method: str, run: Run) -> None:
    """Raise if a gradient file is given to a method that uses no mean gradients.

    Args:
        method: The method's name in the config ("ga").

    Raises:
        ValueError: Names the file.
    """
    if run.gradient_file is not None:
        raise ValueError(
            f"gradients: method={method} takes no mean gradients; leave gradients={run.gradient_file} out"
        )

"""Checks of settings that several searches have. Each raises before anything is computed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from muwa.layer_search.pareto import TOWERS
from muwa.models.base import Editable, Observer, check_observer

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip

Z = 1.959964  # standard normal quantile of a 95 % interval


def check_family(search: str, wanted: type[Observer] | None, model: Editable) -> None:
    """Raise if a search does not fit the kind of model.

    Args:
        search: The search, for the message: "layer_search=grid".
        wanted: The kind of observer that the search uses; None if it fits all models.

    Raises:
        ValueError: Names the model, the models that the search wants, and the searches that fit the model.
    """
    try:
        check_observer(search, wanted, model)
    except ValueError as error:
        raise ValueError(f"{error}; take {model.observer.search}") from None


def check_at_least_1(**settings: float) -> None:
    """Raise if a count is below 1.

    Raises:
        ValueError: Names the key and what it was.
    """
    for key, value in settings.items():
        if value < 1:
            raise ValueError(f"layer_search.{key}: got {value}, want at least 1")


def check_above_0(**settings: float) -> None:
    """Raise if a setting is not positive.

    Raises:
        ValueError: Names the key and what it was.
    """
    for key, value in settings.items():
        if value <= 0:
            raise ValueError(f"layer_search.{key}: got {value}, want more than 0")


def check_between_0_and_1(**settings: float) -> None:
    """Raise if a rate is not in (0, 1).

    Raises:
        ValueError: Names the key and what it was.
    """
    for key, value in settings.items():
        if not 0 < value < 1:
            raise ValueError(f"layer_search.{key}: got {value}, want a rate in (0, 1)")


def check_towers(towers: Sequence[str]) -> None:
    """Raise if no tower is searched, or an unknown one.

    Raises:
        ValueError: Says what it got and what there is.
    """
    if not towers or not set(towers) <= set(TOWERS):
        raise ValueError(f"layer_search.towers: got {list(towers)}, want some of {', '.join(TOWERS)}")


def check_one_kind_of_step(**settings: object) -> None:
    """Raise if both or neither of two settings are given.

    Args:
        settings: Two settings: first the one for a lambda, then the one for a relative step.

    Raises:
        ValueError: Names both keys.
    """
    step, relative_step = settings
    if (settings[step] is None) == (settings[relative_step] is None):
        raise ValueError(
            f"layer_search: give exactly one of {step} (lambda) and {relative_step} (of |theta| / |g_f|)"
        )


def check_layers(clip: Clip, granularity: str, names: Sequence[str] = ()) -> None:
    """Raise if the granularity is unknown, or one of `names` is no layer at this granularity.

    Raises:
        ValueError: Lists the granularities, or the layers with the most similar names.
    """
    candidates = [layer.name for layer in clip.layers(granularity)]
    for name in names:
        if name not in candidates:
            near = difflib.get_close_matches(name, candidates, 4, 0.3)
            raise ValueError(
                f"layer_search.layer: {name!r} is not one of the {len(candidates)} candidates at "
                f"granularity={granularity}. Nearest: {', '.join(near) or candidates[0]}."
            )


def check_enough(key: str, samples: int, forget_at_most: float) -> None:
    """Raise if there are so few forget samples that no step could be feasible.

    A step is feasible if the upper end of Wilson's 95 % interval of the forget accuracy is at most
    `forget_at_most`. At an accuracy of 0 on n samples, that upper end is z^2 / (n + z^2).

    Args:
        key: The setting that gives the number of samples, for the message.
        samples: Number of images of the concept, or of questions about it.

    Raises:
        ValueError: There are too few; says how many are needed.
    """
    upper = Z**2 / (samples + Z**2)
    if upper > forget_at_most:
        least = int(Z**2 * (1 - forget_at_most) / forget_at_most) + 1
        raise ValueError(
            f"{key}={samples}: even with none recognised the 95 % interval reaches {upper:.2f}, above "
            f"forget_at_most={forget_at_most}: no step could be feasible. Take at least {least}"
        )

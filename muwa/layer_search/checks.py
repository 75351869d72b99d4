"""The settings of a search, held against the model before anything is computed."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from muwa.models.clip.model import Clip

CHOICES = {"rule": ("constrained", "paper", "deepest"), "criterion": ("top1", "top5")}
TOWERS = ("vision", "text")


def check_search(model: Clip, search: Callable[..., object]) -> None:
    """`check_settings` for a search function whose settings are bound (`functools.partial`) or its own defaults."""
    parameters = inspect.signature(search).parameters.values()
    check_settings(model, **{p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty})


def check_settings(model: Clip, **settings: Any) -> None:
    """Refuse settings that no search can work with.

    Args:
        settings: Any keywords of the functions in `muwa.layer_search`; those that are not given are not checked.

    Raises:
        ValueError: Names the key, what it was and what it may be.
    """
    for key, choices in CHOICES.items():
        if settings.get(key, choices[0]) not in choices:
            raise ValueError(f"layer_search.{key}: got {settings[key]!r}, want one of {', '.join(choices)}")
    if not 0 <= settings.get("target", 0) < 1:
        raise ValueError(f"layer_search.target: got {settings['target']}, want a forget accuracy in [0, 1)")
    if settings.get("tolerance", 0) < 0:
        raise ValueError(f"layer_search.tolerance: got {settings['tolerance']}, want 0 or more standard errors")
    for key, least in (("first_step", 0), ("max_evals", 0)):
        if settings.get(key, 1) <= least:
            raise ValueError(f"layer_search.{key}: got {settings[key]}, want more than {least}")
    towers = settings.get("towers", TOWERS)
    if not towers or not set(towers) <= set(TOWERS):
        raise ValueError(f"layer_search.towers: got {list(towers)}, want some of {', '.join(TOWERS)}")
    for one, other in (("step", "relative_step"), ("steps", "relative_steps")):
        if one in settings and (settings[one] is None) == (settings[other] is None):
            raise ValueError(f"layer_search: give exactly one of {one} (lambda) and {other} (of |theta| / |g_f|)")
    candidates = [layer.name for layer in model.layers(settings.get("granularity", "tensor"))]
    _check_layers(settings, candidates)


def _check_layers(settings: Mapping[str, Any], candidates: list[str]) -> None:
    asked = [settings["layer"]] if "layer" in settings else settings.get("layers") or ()
    for name in asked:
        if name not in candidates:
            near = difflib.get_close_matches(name, candidates, 4, 0.3)
            raise ValueError(
                f"layer_search.layer: {name!r} is not one of the {len(candidates)} candidates at "
                f"granularity={settings.get('granularity', 'tensor')}. Nearest: {', '.join(near) or candidates[0]}."
            )

"""Make a vision-language model forget one thing by editing one layer with one gradient, and prove it.

The library's names; each is loaded from its module when it is first used, so `import muwa` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muwa.cache.store import Store as Store
    from muwa.data.tasks import Dataset as Dataset
    from muwa.data.tasks import celeba as celeba
    from muwa.data.tasks import objects as objects
    from muwa.eval.measure import evaluate as evaluate
    from muwa.layer_search.bisection import pareto_bisect as pareto_bisect
    from muwa.layer_search.grid import fixed as fixed
    from muwa.layer_search.grid import grid as grid
    from muwa.methods.slug import unlearn as slug
    from muwa.miniature.source import dataset as load_miniature
    from muwa.models.clip.open_clip import load as load_clip
    from muwa.models.clip.transformers import load as load_clip_hf
    from muwa.patch.apply import apply_patch as apply_patch
    from muwa.patch.apply import read_patch as read_patch
    from muwa.patch.apply import remove_patch as remove_patch
    from muwa.patch.apply import write_patch as write_patch

_HOMES = {
    "Store": "cache:Store",
    "Dataset": "data.tasks:Dataset",
    "celeba": "data.tasks:celeba",
    "objects": "data.tasks:objects",
    "evaluate": "eval.measure:evaluate",
    "pareto_bisect": "layer_search.bisect:pareto_bisect",
    "fixed": "layer_search.grid:fixed",
    "grid": "layer_search.grid:grid",
    "slug": "methods.slug:unlearn",
    "load_miniature": "miniature.source:dataset",
    "load_clip_hf": "models.clip_hf:load",
    "load_clip": "models.open_clip_models:load",
    "apply_patch": "patch:apply_patch",
    "read_patch": "patch:read_patch",
    "remove_patch": "patch:remove_patch",
    "write_patch": "patch:write_patch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'muwa' has no attribute {name!r}; its names: {', '.join(_HOMES)}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"muwa.{module}"), attribute)


def __dir__() -> list[str]:
    return list(_HOMES)

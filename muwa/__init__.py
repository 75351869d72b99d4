"""Make a vision-language model forget one thing by editing one layer with one gradient, and prove it.

These are the names of the library. Each is loaded from its module when it is first used, so `import muwa` is
fast.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muwa.cache.store import Store as Store
    from muwa.data.dataset import Dataset as Dataset
    from muwa.library import celeba as celeba
    from muwa.library import evaluate as evaluate
    from muwa.library import fixed as fixed
    from muwa.library import grid as grid
    from muwa.library import load_clip as load_clip
    from muwa.library import load_clip_hf as load_clip_hf
    from muwa.library import load_miniature as load_miniature
    from muwa.library import objects as objects
    from muwa.library import pareto_bisect as pareto_bisect
    from muwa.library import slug as slug
    from muwa.library import unlearn as unlearn
    from muwa.patch.apply import apply_patch as apply_patch
    from muwa.patch.apply import read_patch as read_patch
    from muwa.patch.apply import remove_patch as remove_patch
    from muwa.patch.apply import write_patch as write_patch
    from muwa.report.notebook import compare as compare
    from muwa.report.notebook import read_run as read_run
    from muwa.report.notebook import read_sweep as read_sweep
    from muwa.run import Run as Run

_HOMES = {
    "Dataset": "data.dataset:Dataset",
    "Run": "run:Run",
    "Store": "cache.store:Store",
    "celeba": "library:celeba",
    "evaluate": "library:evaluate",
    "fixed": "library:fixed",
    "grid": "library:grid",
    "load_clip": "library:load_clip",
    "load_clip_hf": "library:load_clip_hf",
    "load_miniature": "library:load_miniature",
    "objects": "library:objects",
    "pareto_bisect": "library:pareto_bisect",
    "slug": "library:slug",
    "unlearn": "library:unlearn",
    "apply_patch": "patch.apply:apply_patch",
    "read_patch": "patch.apply:read_patch",
    "remove_patch": "patch.apply:remove_patch",
    "write_patch": "patch.apply:write_patch",
    "compare": "report.notebook:compare",
    "read_run": "report.notebook:read_run",
    "read_sweep": "report.notebook:read_sweep",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("muwa")
    if name not in _HOMES:
        raise AttributeError(f"module 'muwa' has no attribute {name!r}; its names: {', '.join(_HOMES)}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"muwa.{module}"), attribute)


def __dir__() -> list[str]:
    return [*_HOMES, "__version__"]

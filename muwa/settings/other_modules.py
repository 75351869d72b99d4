"""The source files of modules outside muwa, found without importing them, and what can be relied on in them.

A module of the user is imported when its part is made, after the data were opened. What can be told from its
source is told before that. Where Python could do something else than the source suggests, nothing is said.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_DYNAMIC = ("import *", "__getattr__", "globals()", "vars()", "setattr", "exec(")


@cache
def source_file(name: str) -> Path | None:
    """The file of a module; None if there is none, or none in Python. No package is imported."""
    spec, rest = _found(name)
    origin = spec.origin if spec and not rest else None
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def why_missing(target: str) -> str | None:
    """Why there can be no such class or function; None if there may be.

    Args:
        target: Its full name: "mine.metrics.Rank".
    """
    spec, rest = _found(target)
    if spec is None:
        return f"there is no module {target.partition('.')[0]!r}"
    file = Path(spec.origin or "")
    if not rest or file.suffix != ".py" or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    if rest[0] in text or any(word in text for word in _DYNAMIC):
        return None
    return f"{file} has no {rest[0]!r}"


def _found(name: str) -> tuple[ModuleSpec | None, list[str]]:
    """(The innermost module that a dotted name goes through, the names that follow it)."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):  # an empty name; a module without a spec
        return None, rest
    path = first
    while spec and rest and spec.submodule_search_locations is not None:
        path = f"{path}.{rest[0]}"
        inner = PathFinder.find_spec(path, spec.submodule_search_locations)
        if inner is None:
            break
        spec, rest = inner, rest[1:]
    return spec, rest


def is_plain_function(node: ast.FunctionDef) -> bool:
    """Whether a function takes what its source says: no decorator can change that."""
    return not node.decorator_list


def is_plain_class(node: ast.ClassDef) -> bool:
    """Whether a class takes what its `__init__` or its fields say."""
    defined = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    decorators = [ast.unparse(one) for one in node.decorator_list]
    fields = [ast.unparse(item.annotation) for item in node.body if isinstance(item, ast.AnnAssign)]
    return (
        not node.keywords  # a metaclass
        and "__new__" not in defined
        and not ("__init__" in defined and (decorators or defined["__init__"].decorator_list))
        and all(one.partition("(")[0] in ("dataclass", "dataclasses.dataclass") for one in decorators)
        and not any(word in text for text in fields for word in ("KW_ONLY", "InitVar"))
    )

"""What a cache key is made of: stage, function, its code, and every argument that can change the result."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from muwa.cache.code import code_fingerprint
from muwa.fingerprint import Content, digest, fingerprint

_PLAIN = (str, bytes, int, float, Path, Tensor)  # values that hold no code


def key_of(parts: Mapping[str, str]) -> str:
    """The cache key, SHA-256 (hex), of the parts that `key_parts` gives."""
    return digest([json.dumps(parts, sort_keys=True)])


def key_parts(
    stage: str,
    function: Callable[..., Any],
    args: Sequence[Any],
    keywords: Mapping[str, Any],
    free: Mapping[str, Any],
) -> dict[str, str]:
    """The parts of the key of `function(*args, **keywords, **free)`.

    Args:
        stage: The cache stage.
        function: A function, a partial, or a record with `__call__` (such as a layer search). The fields of
            a record are an argument too.
        free: Arguments that cannot change the result. Their values are not part of the key, but the code of
            their classes is (`service_modules`).

    Returns:
        "stage", "function" (its module and name), "code" (the digest of the code that it reaches), and
        "argument NAME" for each argument: its fingerprint.

    Raises:
        TypeError: An argument cannot be fingerprinted, or the function is a lambda or an inner function.
    """
    inner, first, more = function, (), {}
    if isinstance(function, functools.partial):
        inner, first, more = function.func, function.args, function.keywords
    name, arguments = name_of(inner), {}
    if dataclasses.is_dataclass(inner):
        arguments["argument self"] = fingerprint(inner)
    bound = inspect.signature(inner).bind_partial(*first, *args, **{**more, **keywords})
    bound.apply_defaults()  # so that a call that writes out a default has the same key
    given = {name: value for name, value in bound.arguments.items() if name not in free}
    arguments |= {f"argument {name}": fingerprint(value) for name, value in given.items()}
    code = code_fingerprint(modules_of([inner, *given.values()]) | service_modules(free))
    return {"stage": stage, "function": name, "code": code, **arguments}


def name_of(function: Callable[..., Any]) -> str:
    """Module and name of a function, or of the class of a record with `__call__`.

    Raises:
        TypeError: The function is a lambda or an inner function.
    """
    if dataclasses.is_dataclass(function):
        return f"{type(function).__module__}.{type(function).__qualname__}"
    fingerprint(function)  # raises for a lambda or an inner function
    return f"{function.__module__}.{function.__qualname__}"


def modules_of(values: Iterable[Any]) -> set[str]:
    """The modules that define the functions, classes and records in `values`, at any depth.

    Modules of Python and of installed packages are left out: provenance records their versions. For a
    `Content` that is no dataclass (such as a model) only its class counts. Its fingerprint covers its fields.
    """
    modules: set[str] = set()
    for value in values:
        if value is None or isinstance(value, _PLAIN):
            continue
        if isinstance(value, functools.partial):
            modules |= modules_of([value.func, *value.args, *value.keywords.values()])
        elif inspect.ismethod(value):
            modules.add(type(value.__self__).__module__)
        elif inspect.isfunction(value) or inspect.isclass(value):
            modules.add(value.__module__)
        elif isinstance(value, Mapping):
            modules |= modules_of(value.values())
        elif isinstance(value, list | tuple):
            modules |= modules_of(value)
        elif dataclasses.is_dataclass(value):
            fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
            modules |= {type(value).__module__} | modules_of(fields)
        elif isinstance(value, Content):
            modules.add(type(value).__module__)
    return {name for name in modules if _is_muwa_or_user(name)}


def service_modules(free: Mapping[str, Any]) -> set[str]:
    """The modules that define the free arguments of a stage: observers, a run, functions.

    Their values are not part of the key, but the stage calls their code. Their fields are not searched: the
    log of a run may be any object.
    """
    classes = [value if inspect.isroutine(value) else type(value) for value in free.values()]
    return modules_of(one for one in classes if not isinstance(one, functools.partial))


@functools.cache
def _is_muwa_or_user(module: str) -> bool:
    """Whether a module belongs to muwa or to the user: not to Python and not to an installed package."""
    top = module.partition(".")[0]
    if top == "muwa":
        return True
    return top not in sys.stdlib_module_names and "site-packages" not in str(
        getattr(sys.modules.get(module), "__file__", "site-packages")
    )

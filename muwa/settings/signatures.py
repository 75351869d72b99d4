"""Check the settings of a config against the signatures that take them: names, types and ranges.

A range stands in the annotation, as `annotated_types` write it: `Annotated[float, Interval(ge=0, le=1)]`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import cache, partial
from typing import Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, SchemaError
from pydantic_core.core_schema import ErrorType

_WORDS = {  # pydantic's types of errors, in the words of our other messages
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "none_required": "null",
    "too_short": "a list that is not empty",
    "multiple_of": "a multiple of {multiple_of}",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_str": "a list",
    "int_parsing_size": "a smaller number",
    "literal_error": "{expected}",
    "dataclass_type": "a mapping",
    "invalid_key": "a text as each key",
    "callable_type": "a part with a _target_",
}
_OF_PYDANTIC = frozenset(get_args(ErrorType))  # those of our own validators say what they want themselves
_KINDS = {"Sequence": "a list", "Mapping": "a mapping"}
_OF_A_KEY = "[key]"  # behind a key in pydantic's path: the key itself does not fit, not its value
_LONGEST = 100  # characters of a value in a message
_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def check(parts: Mapping[str, Any], *, whole: bool) -> None:
    """Raise if a setting does not fit the function or class that takes it; nested ones too.

    Args:
        parts: Key -> partial, mapping of partials, or plain value.
        whole: Classes among them must get all their settings.

    Raises:
        ValueError: Names the key, what was found and what is wanted.
    """
    for key, part in parts.items():
        if isinstance(part, Mapping):
            check({f"{key}.{name}": inner for name, inner in part.items()}, whole=whole)
        elif isinstance(part, partial):
            _check_names(key, part, whole=whole and inspect.isclass(part.func))
            check_values(key, part.func, part.keywords)
            nested = {name: x for name, x in part.keywords.items() if isinstance(x, partial | Mapping)}
            check({f"{key}.{name}": inner for name, inner in nested.items()}, whole=whole)


def _check_names(key: str, part: partial, *, whole: bool) -> None:
    """Raise ValueError if a keyword is unknown or, if `whole`, one is missing."""
    signature = inspect.signature(part.func)
    bind = signature.bind if whole else signature.bind_partial
    try:
        bind(*part.args, **part.keywords)
    except TypeError as error:
        where = f"{part.func.__module__}.{part.func.__qualname__}"
        raise ValueError(f"{key}: {where}() {error}") from error


def check_values(key: str, function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    """Raise if a value has not the type or lies outside the range that the signature states.

    Args:
        key: The key of the part, for the message.
        function: A function or a class.
        keywords: Its settings. Only plain values are looked at, not records and other objects.

    Raises:
        ValueError: Names the key, the value and what is wanted.
    """
    for name, value in keywords.items():
        if is_plain(value) and (annotation := _annotation(function, name)) is not None:
            check_value(f"{key}.{name}", annotation, value)


def check_value(key: str, annotation: Any, value: Any) -> None:
    """Raise if a value does not fit an annotation. Numbers and texts are not converted.

    Raises:
        ValueError: Names the key, the value and what is wanted.
    """
    try:
        _adapter(annotation).validate_python(value)
    except ValidationError as error:
        details = error.errors(include_url=False)
        wanted = " or ".join(dict.fromkeys(map(_wanted, details)))
        places = {_place(value, detail["loc"]) for detail in details}
        for name in places.pop() if len(places) == 1 else ():
            key, value = f"{key}.{name}", value[name]
        raise ValueError(f"{key}: got {_shown(value)}, want {wanted}") from error


def _place(value: Any, location: tuple[int | str, ...]) -> tuple[Any, ...]:
    """The keys and indices that lead to what does not fit. Pydantic puts the members of unions between.

    To a key that does not fit leads what leads to its mapping.
    """
    found: list[int | str] = []
    if _OF_A_KEY in location:
        location = location[: location.index(_OF_A_KEY) - 1]
    for name in location:
        inside = value if isinstance(value, Mapping) else dict(enumerate(value)) if _is_list(value) else {}
        if name in inside:
            value = inside[name]
            found.append(name)
    return tuple(found)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _shown(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _wanted(detail: ErrorDetails) -> str:
    """What a value should be, in words: "at least 1"."""
    return f"{_kind(detail)} as each key" if _OF_A_KEY in detail["loc"] else _kind(detail)


def _kind(detail: ErrorDetails) -> str:
    """What the value itself, or the key itself, should be."""
    if detail["type"] == "is_instance_of":
        return _KINDS.get(detail.get("ctx", {}).get("class", ""), "a part with a _target_")
    words = _WORDS.get(detail["type"])
    limits = {key: f"{x:g}" if isinstance(x, float) else x for key, x in detail.get("ctx", {}).items()}
    if words is None:
        return "a value of another kind" if detail["type"] in _OF_PYDANTIC else detail["msg"]
    return words.format(**limits)


@cache
def _annotation(function: Callable[..., Any], name: str) -> Any:
    """The annotation of a parameter, read where it stands; None if there is none."""
    parameter = inspect.signature(function).parameters.get(name)
    if parameter is None or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
        return None
    annotation = parameter.annotation
    if isinstance(annotation, str):
        bases = function.__mro__ if inspect.isclass(function) else ()
        stated_in = next((base for base in bases if name in vars(base).get("__annotations__", {})), function)
        annotation = eval(annotation, vars(sys.modules[stated_in.__module__]))
    return None if annotation is inspect.Parameter.empty else annotation


@cache
def _adapter(annotation: Any) -> TypeAdapter:
    try:
        return TypeAdapter(annotation, config=None if is_dataclass(annotation) else _STRICT)
    except SchemaError:  # a protocol that only type checkers can test
        return TypeAdapter(Any)


def is_plain(value: Any) -> bool:
    """Whether a value is as a config file gives it; objects that Python code hands over are not."""
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values()))
    if _is_list(value):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float)

"""Check a composed config against the signatures of what it names, before anything is imported.

`muwa.settings.source_signatures` reads the signatures. Of targets outside muwa only the names of settings are
checked here; the rest when they are imported (`muwa.settings.signatures.check`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from muwa.settings.other_modules import why_missing
from muwa.settings.signatures import check_value, is_plain
from muwa.settings.source_signatures import SourceSignature, source_signature

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # "${whitening.damping}": the value stands at that key
_SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check(config: Mapping[str, Any], written: Mapping[str, Any], records: Sequence[str]) -> None:
    """Raise if a setting has an unknown name, another type than its signature states, or is out of range.

    Args:
        config: Group -> its settings as plain values, every reference resolved.
        written: The whole config as it is written, with its references (`${seed}`).
        records: The groups whose classes must get all their settings.

    Raises:
        ValueError: Names the key that the value was given by, the value and what is wanted.
    """
    for group, value in config.items():
        _check(group, value, written, whole=group in records)


def check_parts(group: str, parts: Mapping[str, Any]) -> None:
    """Raise if a group that holds parts by name holds something else.

    So it does after `+eval.mia.seeds=3` and `eval.forget=3`.

    Raises:
        ValueError: Names the key.
    """
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise ValueError(
                f"{group}.{name}: got {part!r}, want one of its settings, {group}.{name}.SETTING=VALUE"
            )
        if "_target_" not in part:
            raise ValueError(f"{group}.{name}: not in use, so it has no settings; want {group}=[...,{name}]")


def _check(key: str, value: Any, written: Mapping[str, Any], *, whole: bool) -> None:
    """Check the nodes of a value, from the outside in."""
    key = _source(key, written)
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return
    target = value.get("_target_")
    signature = source_signature(target) if isinstance(target, str) else None
    if isinstance(target, str) and not signature and (why := why_missing(target)):
        raise ValueError(
            f"{key}: Error locating target {target!r} ({why}); want a class or function that exists"
        )
    settings = {name: inner for name, inner in value.items() if name not in _SPECIAL}
    if signature:
        _check_names(f"{key}: {target}()", signature, settings, whole=whole)
        for name, inner in settings.items():
            parameter = signature.signature.parameters.get(str(name))
            plain = _without_parts(inner)
            if parameter is not None and is_plain(plain) and (plain or not inner):
                check_value(_source(f"{key}.{name}", written), parameter.annotation, plain)
    for name, inner in settings.items():
        _check(f"{key}.{name}", inner, written, whole=whole)


def _check_names(where: str, found: SourceSignature, settings: Mapping[str, Any], *, whole: bool) -> None:
    """Raise ValueError if a setting is unknown, or a class lacks one."""
    bind = found.signature.bind if whole and found.is_class else found.signature.bind_partial
    try:
        bind(**settings)
    except TypeError as error:
        raise ValueError(f"{where} {error}") from error


def _without_parts(value: Any) -> Any:
    """A value without what is made of nodes with a `_target_`: those are checked on their own."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            return {}
        kept = {name: _without_parts(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if inner or not value[name]}
    return value


def _source(key: str, written: Mapping[str, Any]) -> str:
    """The key that a value was given by: `method.seed` is written as `${seed}`, so it is `seed`."""
    for _ in range(10):  # a chain of references; a circle was refused when they were resolved
        node: Any = written
        for name in key.split("."):
            node = node.get(name) if isinstance(node, Mapping) else None
        reference = _REFERENCE.fullmatch(node) if isinstance(node, str) else None
        if reference is None:
            return key
        key = reference[1]
    return key

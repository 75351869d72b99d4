"""Hydra's flags among the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser

# Flags whose value is the next word; that of --info may be left out.
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
              "--config-dir", "-cd", "--experimental-rerun")  # fmt: skip
_MODES = ("run", "multirun", "cfg", "info")  # Hydra does one of these
VALUE_OR_NONE = ("--info", "-i")


def in_an_order_for_hydra(words: Sequence[str]) -> list[str]:
    """The words with the settings together: Hydra refuses settings on both sides of a flag.

    The flags, with their values, then stand last. Words that are in order already stay as they are.

    >>> in_an_order_for_hydra(["model=vlm", "--cfg", "job", "seed=1"])
    ['model=vlm', 'seed=1', '--cfg', 'job']
    >>> in_an_order_for_hydra(["-m", "seed=1,2"])
    ['-m', 'seed=1,2']
    """
    settings: list[str] = []
    flags: list[str] = []
    kinds = ""  # "s" for each setting, "f" for each word of a flag
    before = ""
    for word in words:
        value = before in WITH_VALUE or (before in VALUE_OR_NONE and _can_be_a_value(word))
        kinds += "f" if value or word.startswith("-") else "s"
        (flags if kinds[-1] == "f" else settings).append(word)
        before = "" if value else word
    apart = "f" in kinds.strip("f")  # between the first and the last setting
    return [*settings, *flags] if apart else list(words)


def unknown_flag(words: Sequence[str], typed: Sequence[str]) -> tuple[str, str] | None:
    """The first flag that Hydra does not know, as it was typed, and the setting that it would be; or None.

    Args:
        words: As Hydra will read them (`in_an_order_for_hydra`).
        typed: As they were typed.

    Raises:
        ValueError: A flag has not its value, or two flags exclude each other.

    >>> unknown_flag(["--method=slug"], ["--method=slug"]), unknown_flag(["--seed"], ["--seed", "1"])
    (('--method=slug', 'method=slug'), ('--seed 1', 'seed=1'))
    """
    if "--version" in words or not any(word.startswith("-") for word in words):
        return None  # --version: the parser would print it here
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    read, unknown = parser.parse_known_args(list(words))
    if len(modes := [name for name in _MODES if getattr(read, name)]) > 1:
        _refuse(f"{' and '.join(f'--{name}' for name in modes)}: want only one of them")
    flag = next((word for word in unknown if word.startswith("-") and word in typed), None)
    if flag is None:
        return None
    name, sign, value = flag.lstrip("-").partition("=")
    (following,) = typed[typed.index(flag) + 1 :][:1] or [""]
    if not sign and following and "=" not in following and not following.startswith("-"):
        flag, value = f"{flag} {following}", following
    return flag, f"{name}={value or 'VALUE'}"


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{message} (--help lists the flags)")


def _can_be_a_value(word: str) -> bool:
    """Whether a word after --info is its value and not a setting."""
    return "=" not in word and not word.startswith(("-", "~", "+"))

"""Hydra's flags among the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence

# Flags whose value is the next word; that of --info may be left out.
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
              "--config-dir", "-cd", "--experimental-rerun")  # fmt: skip
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


def _can_be_a_value(word: str) -> bool:
    """Whether a word after --info is its value and not a setting."""
    return "=" not in word and not word.startswith(("-", "~", "+"))

"""The parser of the tools' command lines: what is wrong, and what to type, in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class OneLineParser(argparse.ArgumentParser):
    """An `ArgumentParser` that refuses a command line in one line; its own refusal has several.

    Its name of a program that `python -m` started is "python -m MODULE".
    """

    def __init__(self, *, prog: str | None = None, **settings: Any):
        super().__init__(prog=prog or _program(), **settings)

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """As argparse does, without a comment behind the command (`without_comment`)."""
        words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(without_comment(words), namespace)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how the command is typed, and leave with exit code 2."""
        typed = " ".join(self.format_usage().split()).removeprefix("usage: ").replace(" [-h]", "", 1)
        print(f"{self.prog}: {message}; want {typed}", file=sys.stderr)
        raise SystemExit(2)


def _program() -> str | None:
    """The command as it was typed, without its words; None leaves it to argparse."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or sys.argv[0].startswith("muwa "):
        return None
    return f"python -m {spec.name.removesuffix('.__main__')}"


def without_comment(words: Sequence[str]) -> list[str]:
    """The words before a lone "#". An interactive zsh hands a comment that was pasted to the command.

    >>> without_comment(["apply", "P", "#", "the", "base"]), without_comment(["a#b", "#c"])
    (['apply', 'P'], ['a#b', '#c'])
    """
    return list(words[: words.index("#")] if "#" in words else words)

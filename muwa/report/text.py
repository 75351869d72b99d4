"""Text files of a report, the environment of its HTML templates, and how numbers are written."""

from __future__ import annotations

import os
from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def write_text(path: Path, text: str) -> None:
    """Write a text file. It appears when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def environment() -> jinja2.Environment:
    """The environment of the templates. It escapes what it inserts, and an undefined name is an error."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def rounded(value: float, spec: str) -> str:
    """A number in a format such as "+.1f". What rounds to zero has no sign.

    >>> rounded(-0.04, ".1f")
    '0.0'
    >>> rounded(0.04, "+.1f")
    '0.0'
    >>> rounded(-0.06, "+.1f")
    '-0.1'
    """
    text = format(value, spec)
    return text if text.strip("+-0.,") else text.lstrip("+-")

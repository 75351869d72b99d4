"""Text files of a report, the environment of its HTML templates, and how numbers are written."""

from __future__ import annotations

from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).parent / "templates"


def csv_cell(text: str) -> str:
    """A text as a cell of a CSV file: a leading apostrophe keeps a spreadsheet from reading it as a formula.

    Numbers stay numbers.

    >>> [csv_cell(text) for text in ("=1+1", "@Ada", "-A", "-1e-4", "+3", "Ada Fox", "")]
    ["'=1+1", "'@Ada", "'-A", '-1e-4', '+3', 'Ada Fox', '']
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def md_cell(text: str) -> str:
    """A text as a cell of a Markdown table.

    >>> md_cell("a|b")
    'a\\\\|b'
    """
    return text.replace("|", r"\|")


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

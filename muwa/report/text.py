"""Text files of a report, the environment of its HTML templates, and how numbers are written."""

from __future__ import annotations

from functools import cache
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


@cache
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


def percent(rate: float) -> str:
    """A rate in [0, 1] in per cent, without its unit: one decimal where it is not a whole number.

    >>> percent(1.0), percent(0.98548), percent(-0.0001)
    ('100', '98.5', '0')
    """
    return rounded(100 * rate, ".1f").removesuffix(".0")


def percent_interval(low: float, high: float, n: int) -> str:
    """An interval of a rate in per cent. Of fewer than 100 samples, one is more than a point: no decimals.

    >>> percent_interval(0.0, 0.3244, 8), percent_interval(0.9738, 0.9938, 792)
    ('0 to 32', '97.4 to 99.4')
    """
    ends = (rounded(100 * end, ".0f" if n < 100 else ".1f") for end in (low, high))
    return " to ".join(ends)

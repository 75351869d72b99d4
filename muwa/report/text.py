"""Text files of a report, and the environment of its HTML templates."""

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

"""A figure that was drawn for a page, and saved as a PNG file beside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from muwa.report import figures
from muwa.report.svg import inline

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawn:
    """A figure for a page.

    Args:
        svg: The element for the page.
        title: Its caption, where a page has several of a kind.
    """

    svg: Markup
    title: str = ""


def draw(make: Callable[[], figures.Figure], path: Path, alt: str, *, whole: bool) -> Drawn | None:
    """Make a figure, write it as PNG, and give it as SVG; None, with a warning, if that fails.

    Args:
        path: The PNG file; its name, unique in the page, is the prefix of the ids.
        alt: What is seen.
        whole: Whether the page shows it in its own size, however narrow the page is.
    """
    figure = figures.try_save(make, path)
    if figure is None:
        return None
    try:
        return Drawn(inline(figure, path.stem, alt, whole=whole))
    except Exception as error:  # whatever a name with odd letters does to XML: it must not cost the page
        log.warning("the figure %s is not on the page: %s: %s", path.name, type(error).__name__, error)
        return None

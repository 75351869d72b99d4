"""The progress bar of everything that takes long: label, position, rate and remaining time, on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


class _Rate(ProgressColumn):
    """Units per second, averaged over the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="progress.data.speed")


def track(
    items: Iterable[T], what: str, total: int, *, show: bool, sizes: Iterable[int] | None = None
) -> Iterator[T]:
    """Yield `items` with a progress bar.

    Args:
        what: The label of the bar.
        total: The number of units of all items together.
        show: False shows no bar. A stderr that is no terminal never shows one.
        sizes: The units of each item; None counts one for each.
    """
    console = Console(stderr=True)
    if not show or not console.is_terminal:
        yield from items
        return
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        counts = iter(sizes) if sizes is not None else None
        for item in items:
            yield item
            bar.advance(task, next(counts) if counts is not None else 1)

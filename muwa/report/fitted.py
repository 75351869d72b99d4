"""A table for a terminal of any width: no word is cut, and columns that do not fit are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_Gap = tuple[int, int] | tuple[int, int, int, int]  # padding of a cell
_ROOMY, _TIGHT = (0, 1), (0, 1, 0, 0)


@dataclass(frozen=True)
class Column:
    """A column.

    Args:
        cells: One for each row.
        right: Whether its cells stand at the right, as numbers do.
        folds: Whether a cell may be broken into lines between its words. Headings always may.
        leaves: Where the table is too wide, the column with the highest number is left out first; 0 stays.
    """

    heading: str
    cells: Sequence[Text]
    right: bool = False
    folds: bool = False
    leaves: int = 0

    @property
    def least(self) -> int:
        """The letters that its longest unbreakable part takes."""
        parts = [part for cell in self.cells for part in (cell.plain.split() if self.folds else [cell.plain])]
        return max(map(cell_len, [*parts, *self.heading.split()]), default=0)

    @property
    def most(self) -> int:
        """The letters of its longest cell."""
        return max(map(cell_len, [self.heading, *(cell.plain for cell in self.cells)]))


@dataclass(frozen=True)
class FittedTable:
    """Rows of columns, as wide as the terminal allows.

    If even the columns that stay do not fit, their rows are longer than the terminal is wide.

    Args:
        columns: From left to right.
        whole: Where all columns are, for the line that says how many were left out.
    """

    columns: Sequence[Column]
    whole: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        shown = list(self.columns)
        while _needed(shown, _TIGHT) > options.max_width:
            if not (last := max(column.leaves for column in shown)):
                break
            shown = [column for column in shown if column.leaves != last]
        roomy = _needed(shown, _ROOMY) <= options.max_width
        yield _table(shown, _ROOMY if roomy else _TIGHT, options.max_width)
        if missing := len(self.columns) - len(shown):
            what = f"{missing} column{'s do' if missing > 1 else ' does'}"
            yield Text(f"{what} not fit here; {self.whole} has all", style="dim")


def _needed(columns: Sequence[Column], gap: _Gap) -> int:
    """The letters that a table of these columns takes at least."""
    return sum(column.least for column in columns) + _between(len(columns), gap)


def _between(count: int, gap: _Gap) -> int:
    """The letters between and beside `count` columns."""
    each = 3 if gap == _ROOMY else 2
    return each * (count - 1) + 2


def _table(columns: Sequence[Column], gap: _Gap, width: int) -> Table:
    """The table. Columns whose cells fold get the room that is left, then those whose headings do."""
    room = max(0, width - _needed(columns, gap))
    widths = [column.least for column in columns]
    missing = [column.most - column.least for column in columns]
    for i in sorted(range(len(columns)), key=lambda i: (not columns[i].folds, missing[i])):
        more = min(room, missing[i])
        widths[i] += more
        room -= more
    made = Table(box=SIMPLE_HEAD, pad_edge=False, padding=gap)
    for column, letters in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        made.add_column(column.heading, justify=justify, width=letters, overflow="fold")
    made.width = sum(widths) + _between(len(columns), gap)
    for row in zip(*(column.cells for column in columns), strict=True):
        made.add_row(*row)
    return made

"""Tables of a terminal: worked by hand at several widths."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from muwa.report.fitted import Column, FittedTable

NAMES, LABELS = ("neighbours/nearest", "retain/top1"), ("among the first five", "the other names")


def column(heading, cells, **how):
    return Column(heading, [Text(cell) for cell in cells], **how)


TABLE = FittedTable(
    (
        column("metric", NAMES),
        column("", LABELS, folds=True, leaves=1),
        column("after the edit", ("1.0 %", "100.0 %"), right=True),
        column("interval", ("0.0 to 2.0", "98.0 to 100.0"), leaves=2),
    ),
    "report.html",
)


def lines(width, table=TABLE):
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=False).print(table, crop=False)
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def test_with_room_every_cell_stands_in_one_line():
    """18 + 20 + 14 + 13 letters, 3 gaps of 3, 2 letters at the edges: 76."""
    assert lines(76) == lines(200)
    assert lines(76)[2] == " neighbours/nearest   among the first five            1.0 %   0.0 to 2.0"
    assert len(lines(76)) == 4


def test_texts_and_headings_fold_between_words():
    """18 + 7 + 13 letters stay in one piece, with 3 gaps of 3 and 2 at the edges; 11 are left for the text."""
    assert lines(60) == [
        "                                      after",
        "                                        the",
        " metric                                edit   interval",
        " ──────────────────────────────────────────────────────────",
        " neighbours/nearest   among the       1.0 %   0.0 to 2.0",
        "                      first five",
        " retain/top1          the other     100.0 %   98.0 to 100.0",
        "                      names",
    ]


@pytest.mark.parametrize("width", range(20, 80))
def test_no_name_is_cut_and_what_is_left_out_is_counted(width):
    shown = lines(width)
    words = " ".join(shown).split()
    assert {*NAMES, "100.0", "metric"} <= {*words}
    missing = 2 - ("interval" in words) - ("among" in words)
    assert bool(missing) == ("fit here; report.html has all" in " ".join(shown).replace("\n", " "))
    if width >= 30:  # 18 + 7 letters, a gap of 2 and the edges; below, rows are longer than the terminal
        assert max(map(len, shown)) <= width

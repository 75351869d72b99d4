"""Example images before and after an edit, side by side."""

import numpy as np
import torch

from muwa.report import figures
from muwa.report.samples import sheet, with_images
from muwa.types.example import Example


def image(value: int) -> torch.Tensor:
    """One colour, 2 rows of 4 pixels."""
    return torch.full((3, 2, 4), value, dtype=torch.uint8)


EXAMPLES = (
    Example("forget", "A photo of Ada Fox", "Ada Fox", image(1), image(2)),
    Example("forget", "A portrait of Bo Hill", "Bo Hill", image(3), image(4)),
    Example("retain", "A photo of Cy Reed", "Cy Reed", image(5), image(6)),
    Example("utility", "A red star on a long and winding road to nowhere", "red star", image(7), image(8)),
)


def shown(show_forget: bool) -> list[list[int]]:
    """The colour of each place of the sheet, row by row; 0 where it is empty."""
    axes = sheet(EXAMPLES, show_forget=show_forget).axes
    colours = [int(np.asarray(axis.images[0].get_array())[0, 0, 0]) if axis.images else 0 for axis in axes]
    return [colours[i : i + 2] for i in range(0, len(colours), 2)]


def test_before_stands_above_after_a_column_a_prompt() -> None:
    assert shown(True) == [[1, 3], [2, 4], [5, 0], [6, 0], [7, 0], [8, 0]]


def test_images_of_the_forget_set_are_grey_unless_asked_for() -> None:
    assert shown(False) == [[225, 225], [225, 225], [5, 0], [6, 0], [7, 0], [8, 0]]
    first = sheet(EXAMPLES, show_forget=False).axes[0]
    assert "not shown" in [text.get_text() for text in first.texts]
    assert np.asarray(first.images[0].get_array()).shape == (2, 4, 3)


def test_headings_name_the_set_and_what_was_forgotten() -> None:
    axes = sheet(EXAMPLES, show_forget=True).axes
    headings = {
        text.get_text(): text.get_color() for axis in axes for text in axis.texts if text.get_fontsize() == 9
    }
    assert headings == {
        "Forget set: Ada Fox, Bo Hill": figures.RED,
        "Retain set: others of the same kind": "#222222",
        "Utility set: everything else": "#222222",
    }
    assert axes[0].get_title() == "\n\n\nA photo of Ada Fox"
    assert axes[8].get_title() == "\n\nA red star on a long\nand winding road to …"


def test_a_set_without_examples_takes_no_room() -> None:
    assert len(sheet(EXAMPLES[:1], show_forget=True).axes) == 2


def test_only_examples_with_images_are_shown() -> None:
    answer = Example("forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill")
    assert with_images((answer, *EXAMPLES)) == EXAMPLES

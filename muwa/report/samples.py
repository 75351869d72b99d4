"""The sheet of example images: what the unedited and the edited model generate for the same prompts."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from muwa.report import figures
from muwa.types.example import Example

HEADINGS = {
    "forget": "Forget set",
    "retain": "Retain set: others of the same kind",
    "utility": "Utility set: everything else",
}
PIXELS = 224  # the largest side of an image on a page
LINES, WIDTH = 2, 22  # lines of a prompt above its column, and letters per line


def with_images(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The examples whose outputs are images."""
    return tuple(one for one in examples if isinstance(one.before, Tensor))


def png(image: str | Tensor) -> bytes:
    """An image (3, h, w) uint8 as PNG, made smaller if it is larger than a page needs.

    Args:
        image: The output of an example of `with_images`.
    """
    assert isinstance(image, Tensor)
    picture = Image.fromarray(_rgb(image))
    picture.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def sheet(examples: Sequence[Example], *, show_forget: bool) -> figures.Figure:
    """Two rows per role, before above after; one column per prompt.

    Forget images are grey unless `show_forget`.

    Args:
        examples: Those of `with_images`, at least one.
    """
    by_role = {role: [one for one in examples if one.role == role] for role in HEADINGS}
    by_role = {role: mine for role, mine in by_role.items() if mine}
    columns = max(map(len, by_role.values()))
    figure, axes = figures.blank(1.35 * columns + 0.6, 3.3 * len(by_role), 2 * len(by_role), columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (role, mine) in enumerate(by_role.items()):
        rows = axes[2 * place : 2 * place + 2]
        forget = role == "forget"
        for column, one in enumerate(mine):
            _column(rows[:, column], one, hidden=forget and not show_forget)
        for axis, when in zip(rows[:, 0], ("before", "after"), strict=True):
            _write(axis, -0.08, 0.5, when, rotation=90, ha="right", va="center", fontsize=8)
        heading = HEADINGS[role]
        if forget:
            heading += f": {', '.join(dict.fromkeys(one.expected for one in mine))}"
        colour = figures.RED if forget else "#222222"
        written = _write(rows[0, 0], 0, 1.3, heading, fontsize=9, fontweight="bold", color=colour)
        written.set_in_layout(False)  # it may reach over its column
    return figure


def _column(axes: np.ndarray, example: Example, *, hidden: bool) -> None:
    """One prompt with its image before and after."""
    for axis, image in zip(axes, (example.before, example.after), strict=True):
        assert isinstance(image, Tensor)
        axis.imshow(_grey(image) if hidden else _rgb(image), interpolation="nearest")
        if hidden:
            _write(axis, 0.5, 0.5, "not shown", ha="center", va="center", fontsize=7.5)
    lines = textwrap.wrap(example.prompt, WIDTH, max_lines=LINES, placeholder=" …")
    room = [""] * (2 * LINES - len(lines))  # two lines for the heading; shorter prompts stand low
    axes[0].set_title("\n".join([*room, *lines]), fontsize=6.8)


def _write(axis: Any, x: float, y: float, text: str, **style: Any) -> Any:
    """Text at (x, y) of a panel, whose corners are (0, 0) and (1, 1)."""
    return axis.text(x, y, text, transform=axis.transAxes, **style)


def _rgb(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def _grey(image: Tensor) -> np.ndarray:
    return np.full((*image.shape[1:], 3), 225, np.uint8)

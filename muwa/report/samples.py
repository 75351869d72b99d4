"""The same prompts from the same seeds, drawn before and after an edit, as one picture to look at."""

from __future__ import annotations

import textwrap

import numpy as np
from torch import Tensor

from muwa.data.prompts import image_requests
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.report import figures
from muwa.types.data import Task
from muwa.types.image_requests import ImageRequest, ImageSample

SEED = 1000  # the first of the report's
WORDS = {"forget": "forgotten", "retain": "kept, of the same kind", "cross": "kept, of another kind"}


def gallery(before: ImageGenerator, after: ImageGenerator, task: Task, *, each: int = 6) -> tuple[ImageSample, ...]:
    """A few pictures of each role, drawn by both models.

    Args:
        each: LabelledImages a role at most; those of the forgotten from as many seeds.
    """
    wanted = _chosen(task, each)
    pairs = zip(wanted, before.draw(prompts_of(wanted)), after.draw(prompts_of(wanted)), strict=True)
    return tuple(ImageSample(ask, first, second) for ask, first, second in pairs)


def _chosen(task: Task, each: int) -> list[ImageRequest]:
    """A style's pictures are asked for their class too: of kinds "style" and "class" they are shown once."""
    every = image_requests(task, task.eval, seeds=range(SEED, SEED + each))
    found: list[ImageRequest] = []
    for role in ("forget", "retain") if task.kind in ("style", "class") else WORDS:
        mine = [ask for ask in every if ask.role == role]
        count = min(each, len(mine))
        found += [mine[i * len(mine) // count] for i in range(count)]
    return found


def sheet(drawn: tuple[ImageSample, ...], *, show_forget: bool) -> figures.Figure:
    """Before above after, a column a prompt; pictures of the forgotten are left grey unless `show_forget`."""
    roles = [role for role in WORDS if any(one.ask.role == role for one in drawn)]
    columns = max(sum(one.ask.role == role for one in drawn) for role in roles)
    figure, axes = figures.blank(1.35 * columns + 0.6, 3.3 * len(roles), 2 * len(roles), columns)
    for axis in axes.flat:
        axis.set_axis_off()
    for place, role in enumerate(roles):
        mine = [one for one in drawn if one.ask.role == role]
        for column, one in enumerate(mine):
            hidden = role == "forget" and not show_forget
            for row, (when, picture) in enumerate((("before", one.before), ("after", one.after))):
                axis = axes[2 * place + row, column]
                axis.imshow(_grey(picture) if hidden else _rgb(picture), interpolation="nearest")
                if hidden:
                    axis.text(0.5, 0.5, "not shown", ha="center", va="center", transform=axis.transAxes, fontsize=7.5)
                if column == 0:
                    axis.text(
                        -0.08, 0.5, when, rotation=90, ha="right", va="center", transform=axis.transAxes, fontsize=8
                    )
            top = axes[2 * place, column]
            lines = textwrap.wrap(one.ask.text, 22)
            top.set_title("\n".join(["", ""] + [""] * (2 - len(lines)) + lines), fontsize=6.8)  # room for the heading
        head = f"{WORDS[role]}: {mine[0].ask.concept}" if role == "forget" else WORDS[role]
        first, colour = axes[2 * place, 0], figures.RED if role == "forget" else "#222222"
        written = first.text(0, 1.3, head, transform=first.transAxes, fontsize=9, fontweight="bold", color=colour)
        written.set_in_layout(False)  # it may reach over its column
    return figure


def _rgb(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).numpy()


def _grey(picture: Tensor) -> np.ndarray:
    return np.full((*picture.shape[1:], 3), 225, np.uint8)

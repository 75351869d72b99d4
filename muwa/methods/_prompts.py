"""The prompts with a name to forget, each paired with the same prompt with an anchor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muwa.data.prompts import prompts_with, replaced_prompts
from muwa.types.data import PROMPTS

if TYPE_CHECKING:
    from muwa.types.data import Task

# Kind of task -> what to generate in place of a name if no anchor is given. Of a prompt of a file that does
# not mention the concept, nothing is left.
ANCHORS = {"identity": "a person", "object": "an object", "style": "photo", "class": "object", PROMPTS: ""}


def prompt_pairs(task: Task, anchor: str) -> tuple[tuple[str, str], ...]:
    """Every prompt with a name to forget, paired with the same prompt with `anchor` in place of the name.

    Raises:
        ValueError: The anchor is one of the names to forget.
    """
    if anchor in task.names:
        raise ValueError(
            f"method.anchor: got {anchor!r}, which is to be forgotten; want something else to generate"
        )
    return tuple(
        pair
        for name in task.names
        for pair in zip(prompts_with(task, name), replaced_prompts(task, name, anchor), strict=True)
    )

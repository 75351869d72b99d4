"""One prompt or question, with what the unedited and the edited model gave for it: a sample for the report."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Example:
    """The same request put to both models.

    Args:
        role: "forget" (of the forget set), "retain", or "utility" (everything else).
        prompt: The text that was given to the model.
        expected: The concept that is asked for, or the right answer.
        before, after: The unedited and the edited model's output: an answer, or an image (3, h, w) uint8.
    """

    role: str
    prompt: str
    expected: str
    before: str | Tensor
    after: str | Tensor

"""One prompt or question with the outputs of the unedited and the edited model: a sample for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from muwa.types.short import short_repr

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Example:
    """The same request put to both models.

    Args:
        role: "forget" (about the forget set), "retain", or "utility" (everything else).
        prompt: The text that the models were given.
        expected: The concept that is asked for, or the right answer.
        before, after: The output of the unedited and of the edited model: an answer, or an image (3, h, w)
            uint8.
    """

    role: str
    prompt: str
    expected: str
    before: str | Tensor
    after: str | Tensor

    __repr__ = short_repr

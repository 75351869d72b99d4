"""The contract of a method, and the frame that every method runs in."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.edit import Edit


class Method(Protocol):
    """Makes an edit that forgets what a task names. A frozen record of its paper's settings.

    Attributes:
        uses_workers: Whether worker ranks help (with gradients). The worker ranks of any other method do nothing.
    """

    uses_workers: ClassVar[bool] = False

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range or does not fit the model; before any compute.

        Raises:
            ValueError: Names the setting, what it was and what is wanted.
        """

    def __call__(self, model: Any, task: Task, run: Run) -> Edit:
        """The edit. The model stays as it is, also when this fails. Worker ranks get an edit without deltas."""


def make_edit(method: Method, model: Editable, task: Task, run: Run) -> Edit:
    """Check the method, then make its edit. Worker ranks of a method that does not use them return at once.

    Raises:
        ValueError: A setting is out of range or does not fit the model; nothing was computed then.
    """
    method.check(model, task, run)
    if not run.is_main and not method.uses_workers:
        return Edit({}, ())
    return method(model, task, run)

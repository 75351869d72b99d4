"""The contract of a method, and the frame that every method runs in."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from muwa.models.base import Editable, Observer
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.edit import Edit


class Method(Protocol):
    """Makes an edit that forgets the names of a task. A method is a frozen record of its paper's settings.

    Attributes:
        uses_workers: Whether worker ranks help to compute gradients. If not, they do nothing.
        observes: The kind of observer that models must have; None: it fits all models.
    """

    uses_workers: ClassVar[bool] = False
    observes: ClassVar[type[Observer] | None] = None

    def check(self, model: Editable, task: Task, run: Run) -> None:
        """Raise if a setting is out of range or does not fit the model; before any compute.

        Raises:
            ValueError: Names the setting, its value and what is wanted.
        """

    def __call__(self, model: Any, task: Task, run: Run) -> Edit:
        """Make the edit. The model is not changed, even if this fails.

        Worker ranks return an edit without deltas.
        """


def make_edit(method: Method, model: Editable, task: Task, run: Run) -> Edit:
    """Check the method, then make its edit. If the method uses no workers, worker ranks return at once.

    Raises:
        ValueError: A setting is out of range or does not fit the model. Nothing has been computed yet.
    """
    method.check(model, task, run)
    if not run.is_main and not method.uses_workers:
        return Edit({}, ())
    return method(model, task, run)

"""The contract of a measure: a frozen record of settings that turns an observer into metrics."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from muwa.models.base import Editable, Observer
from muwa.types.data import Task
from muwa.types.metric import Metric


class Measure(Protocol):
    """Measures one model on the eval split of a task. One measure may give several metrics.

    Attributes:
        observes: The kind of observer that it looks at. A model of another family is refused.
    """

    observes: ClassVar[type[Observer]]

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting does not fit, or a file is missing; before any compute. Nothing is refused by default.

        Raises:
            ValueError, FileNotFoundError: Says which setting, what it was and what is wanted.
        """

    def __call__(self, observer: Any, task: Task) -> dict[str, Metric]:
        """Metric name ("group/what") -> metric."""

"""The contract of a measure: a frozen record of settings that computes metrics from a model's outputs."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from muwa.models.base import Editable, Observer
from muwa.types.data import Task
from muwa.types.metric import Metric


class Measure(Protocol):
    """Measures one model on the eval split of a task. One measure may give several metrics.

    Attributes:
        observes: The kind of observer that the measure needs. A model with another kind is refused.
        reads_prompts: Whether the measure reads the prompts of a file (task=prompts), which has no images and
            no prompt for a name. If not, such a task is refused.
    """

    observes: ClassVar[type[Observer]]
    reads_prompts: ClassVar[bool] = False

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting does not fit or a file is missing; before any compute.

        The default accepts everything.

        Raises:
            ValueError, FileNotFoundError: Names the setting, its value and what is wanted.
        """

    def __call__(self, observer: Any, task: Task) -> dict[str, Metric]:
        """Metric name ("group/what") -> metric.

        Args:
            observer: The observer of the model to measure; an instance of `observes`.
        """

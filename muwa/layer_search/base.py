"""The contract of a layer search: which layer is edited, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, Self

from muwa.models.base import Editable
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Search


class LayerSearch(Protocol):
    """A frozen record of settings that searches one layer (one of each encoder) and one step.

    A method checks it first, then calls `run.cached("search", search.ready(model, task), model,
    gradients, task, concept, ...)`: the record's fields are part of the cache key.
    """

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range or does not fit the model; before any compute.

        Raises:
            ValueError: Names the key, what it was and what it may be.
        """

    def __call__(
        self, model: Editable, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search on the probe split of `task`, which is the task of `concept` alone.

        Args:
            gradients: Encoder (a key of `model.clips`) -> the gradients of its CLIP.
            run: Its log is called with "scores" once and with "evaluation" for every step.
        """

    def ready(self, model: Editable, task: Task) -> Self:
        """The same search with all that it needs loaded. A cache key is then made of weights, not of paths.

        Most searches load nothing and are ready as they are.
        """
        return self

"""The contract of a layer search, which decides which layer is edited and how far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, Self

from muwa.models.base import Editable, Observer
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.search import Search


class LayerSearch(Protocol):
    """A frozen record of settings; calling it searches for one layer of each encoder and one step.

    A method first calls `check`. Then it calls `muwa.layer_search.replay.run_search` with
    `search.ready(model, task)`, which reads the search back from the cache if it was run before. The record's
    fields are part of the cache key.

    Attributes:
        observes: The kind of observer that models must have; None: it fits all models.
    """

    observes: ClassVar[type[Observer] | None] = None

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
            run: Gets the log: the event "scores" once, and "evaluation" for every step.
        """

    def needs_retain_gradient(self, *, whitened: bool) -> bool:
        """Whether the search, or its record, needs the alignments of layers or the Pareto front.

        If not, gradients are taken without the retain gradient: alignments are None and fronts are empty.

        Args:
            whitened: Whether the forget gradient is whitened. Layers then have a gain, which needs none.
        """
        return True

    def ready(self, model: Editable, task: Task) -> Self:
        """The same search with everything loaded that its settings only point to, such as a classifier.

        The cache key is then made of weights, not of paths. Most searches load nothing and return themselves.
        """
        return self

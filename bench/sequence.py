"""Ways to forget one more name after others were forgotten; `bench.requests` compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import muwa
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import ClipGradients
from muwa.models.clip.model import Clip
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients, Moments

TaskOf = Callable[[tuple[str, ...]], Task]


@dataclass(frozen=True)
class FromOriginal(GradientSource):
    """Gradients and moments of the original model, for a search on a model that was edited since."""

    source: GradientSource
    original: Clip

    def check(self, model: Any, recipe: Recipe, run: Run) -> None:
        """Raise if the original model does not support the other source."""
        self.source.check(self.original, recipe, run)

    def __call__(
        self, model: Any, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The gradients of the original model."""
        return self.source(self.original, task, name, recipe, run)

    def moments(
        self, model: Any, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of the original model."""
        return self.source.moments(self.original, task, recipe, run, outputs=outputs)


@dataclass(frozen=True)
class Request:
    """One more name to forget.

    Args:
        original, edited: The model before all requests, and after the earlier ones.
        names: The names of all requests so far; the last one is new.
        task_of: Names -> the task that forgets them.
    """

    original: Clip
    edited: Clip
    names: tuple[str, ...]
    task_of: TaskOf
    run: Run

    def alone(self) -> Task:
        """The task of the new name. People of earlier requests are among the retained ones."""
        return self.task_of(self.names[-1:])

    def aware(self) -> Task:
        """The task of the new name. Pairs and images of earlier names are not retained."""
        return self.task_of(self.names).only(self.names[-1])

    def on_edited(self, task: Task, method: str, **settings: Any) -> Clip:
        """Edit the edited model once more."""
        return self.edited.edited(muwa.unlearn(self.edited, task, self.run, method, **settings))

    def on_original(self) -> Clip:
        """One joint edit of all names so far, on the original model."""
        task = self.task_of(self.names)
        return self.original.edited(muwa.unlearn(self.original, task, self.run, "slug_whitened"))

    def along_original(self, task: Task) -> Clip:
        """Edit the edited model along the gradients of the original one."""
        source = FromOriginal(ClipGradients(), self.original)
        return self.on_edited(task, "slug_whitened", gradients=source)


# Strategy -> the model after one more request.
STRATEGIES: dict[str, Callable[[Request], Clip]] = {
    "again_joint": lambda request: request.on_original(),
    "edited": lambda request: request.on_edited(request.alone(), "slug_whitened"),
    "edited_aware": lambda request: request.on_edited(request.aware(), "slug_whitened"),
    "original_gradient": lambda request: request.along_original(request.alone()),
    "slug_edited": lambda request: request.on_edited(request.alone(), "slug"),
}

"""The contract of a task builder: what a file in muwa/conf/task/ configures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol, Self

from muwa.data.curate import Curated, Preview, mentions
from muwa.data.dataset import Dataset
from muwa.data.earlier import set_apart
from muwa.types.data import Task


class TaskBuilder(Protocol):
    """Makes a task from a data set. Its settings (what to forget, prompts, limits) are its fields.

    Attributes:
        kinds: The kinds of the tasks that it makes (`muwa.types.data.Task.kind`).
        names_setting: The field that says what to forget; "" if `forgetting` is not supported.
    """

    kinds: ClassVar[tuple[str, ...]] = ()
    names_setting: ClassVar[str] = ""

    def check(self, dataset: Dataset) -> None:
        """Raise if the data cannot be there for this task. No image is opened, and torch is not imported.

        Raises:
            ValueError: The name to forget is unknown; the message lists the nearest names.
            FileNotFoundError: A file or folder is missing. The message says what was looked for.
        """
        ...

    def __call__(self, dataset: Dataset, *, progress: bool = False) -> Task:
        """Read the data and make the task.

        Raises:
            ValueError: The name to forget is unknown (the message lists the nearest names), or there is too
                little data.
            FileNotFoundError: A file or folder is missing.
        """
        ...

    def after(self, earlier: Sequence[str], dataset: Dataset, *, progress: bool = False) -> Task:
        """The task on a model that has forgotten other names before (`muwa.data.earlier.set_apart`).

        The default measures earlier names on the images that the task has of them. A builder that knows more
        images of a name to forget than of one to retain replaces it.

        Args:
            earlier: Those names.
        """
        task = self(dataset, progress=progress)
        return set_apart(task, earlier, mentions(task.retain, earlier, {}))

    def forgetting(self, names: Sequence[str]) -> Self:
        """The same settings for other names to forget.

        Raises:
            ValueError: The builder does not support it.
        """
        raise ValueError(f"task: {type(self).__name__} cannot be told what to forget; set it in the task")

    def curate(self, dataset: Dataset, *, progress: bool = False) -> Curated:
        """Only write the forget sets: the stage `curate`.

        Raises:
            ValueError: The task takes its forget set from a folder of images, so there is nothing to write.
        """
        ...

    def preview(self, dataset: Dataset, *, progress: bool = False) -> dict[str, Preview]:
        """Name -> what `curate` would find. No forget set is written.

        Raises:
            ValueError: As `curate`; also if the task has no preview.
        """
        raise ValueError("curate.dry_run: this task has no preview of its forget sets")

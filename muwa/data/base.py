"""The contract of a task builder: what a file in muwa/conf/task/ configures."""

from __future__ import annotations

from typing import Protocol

from muwa.data.curate import Curated, Preview
from muwa.data.dataset import Dataset
from muwa.types.data import Task


class TaskBuilder(Protocol):
    """Makes a task from a data set. Its settings (what to forget, prompts, limits) are its fields."""

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

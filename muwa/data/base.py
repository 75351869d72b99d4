"""What a file of conf/task/ configures: a builder of tasks."""

from __future__ import annotations

from typing import Protocol

from muwa.data.curate import Curated
from muwa.data.dataset import Dataset
from muwa.types.data import Task


class TaskBuilder(Protocol):
    """Makes a task from a data set. Its settings (what to forget, prompts, limits) are its fields."""

    def __call__(self, dataset: Dataset, *, progress: bool = False) -> Task:
        """Read the data and make the task.

        Raises:
            ValueError: The name to forget is unknown (the message has the nearest names), or there is too
                little data.
            FileNotFoundError: A file or folder is missing.
        """
        ...

    def curate(self, dataset: Dataset, *, progress: bool = False) -> Curated:
        """Write the forget sets and do nothing else. This is the stage `curate`.

        Raises:
            ValueError: This task's forget set is a folder of images, so there is nothing to write.
        """
        ...

"""Take the gradients of a finished run, for a file that another run reads (`muwa.gradients export`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muwa import config
from muwa.cache.store import Store
from muwa.carried import task_of
from muwa.gradients.base import Recipe, TakesGradients
from muwa.gradients.mean import ClipGradients
from muwa.patch.carrying import carry
from muwa.run import Run
from muwa.types.gradients import Gradients

if TYPE_CHECKING:
    from muwa.models.base import Editable


def from_run(folder: Path, concept: str | None, *, trusted: Sequence[str], commands: bool) -> Gradients:
    """The gradients of a finished run, from its cache; computed again if the cache does not have them.

    Args:
        folder: The folder of the run.
        concept: Which of the forgotten names; None if the run forgot one.
        trusted, commands: What the run's config may make (`muwa.config.read_run`).

    Raises:
        ValueError: `folder` is not the folder of a run, or its config is not trusted; the run forgot several
            names and none was given; or the run did not take gradients of exactly one CLIP.
    """
    cfg = config.read_run(folder, trusted=trusted, commands=commands)
    parts = config.build(cfg)
    carrying = carry(parts["model"](), cfg.patches or ())  # runs of earlier versions have no such setting
    given = {"stages": ["unlearn"], "given": []}
    dataset = parts["dataset"]()
    dataset.prepare(parts["task"].check)
    task = task_of(carrying, parts["task"], dataset, given, progress=False)
    if concept is None and len(task.names) == 1:
        concept = task.names[0]
    if concept not in task.names:
        raise ValueError(f"{folder}: --concept is {concept!r}, want one of {', '.join(task.names)}")
    recipe = recipe_of(parts["method"], folder)
    check_one_clip(carrying.model, folder)
    run = Run(Store(Path(cfg.paths.cache)), progress=True)
    each = ClipGradients()(carrying.model, task, concept, recipe, run)
    assert each is not None  # there are no worker ranks here
    (gradients,) = each.values()
    return gradients


def recipe_of(method: Any, folder: Path) -> Recipe:
    """How the method of a run took its gradients.

    Args:
        method: The method's record of settings.
        folder: The folder of the run, for the message.

    Raises:
        ValueError: The method takes no gradients, or they are not those of a CLIP.
    """
    if not isinstance(method, TakesGradients):
        raise ValueError(f"{folder}: its method ({type(method).__name__}) takes no mean gradients to export")
    if not isinstance(method.gradients, ClipGradients):
        raise ValueError(
            f"{folder}: its gradients are {type(method.gradients).__name__}, "
            "want a run of gradient_source=clip to export"
        )
    return method.recipe


def check_one_clip(model: Editable, folder: Path) -> None:
    """Raise if a run took gradients of several CLIPs.

    Raises:
        ValueError: The model has several encoders.
    """
    if len(model.clips) > 1:
        raise ValueError(
            f"{folder}: its model has {len(model.clips)} encoders ({', '.join(model.clips)}), want one: "
            "a file holds the gradients of one CLIP"
        )

"""Run a layer search, or read it back from the cache if it was run before. The log is the same either way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from muwa.layer_search.base import LayerSearch

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.run import Log, Run
    from muwa.types.data import Task
    from muwa.types.gradients import Gradients
    from muwa.types.search import Search


def run_search(
    layer_search: LayerSearch,
    model: Editable,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    run: Run,
) -> Search:
    """Run a layer search, or read it back from the cache. Its events are logged once in both cases.

    Args:
        layer_search: Checked and ready (`LayerSearch.ready`).
        gradients: Encoder (a key of `model.clips`) -> the gradients of its CLIP.
        task: The task of `concept` alone (`Task.only`).
    """
    logged = []

    def log(event: str, row: dict[str, object]) -> None:
        logged.append(event)
        run.log(event, row)

    free = {"run": run.logging_to(log)}
    search: Search = run.cached("search", layer_search, model, gradients, task, concept, _free=free)
    if not logged:
        replay(search, run.log)
    return search


def replay(search: Search, log: Log) -> None:
    """Log the events that a search logs when it runs: its scores once, then each evaluation of its trace."""
    log("scores", {"concept": search.concept, "scores": search.scores, "front": search.front})
    for row in search.trace:
        log("evaluation", {"concept": search.concept, **row.record()})

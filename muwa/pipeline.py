"""One run: check names and data -> curate -> unlearn, eval and report (`muwa.unlearning`).

The setting `stages` says which of them run. With eval alone, what a model carries is measured. This module
and what it imports do without torch, whose import takes seconds: bad input that can be found without it is
refused at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from muwa.data.base import TaskBuilder
from muwa.data.dataset import Dataset
from muwa.drafts import check_writable
from muwa.runtime import libraries, threads
from muwa.runtime import progress as shown
from muwa.runtime.notices import recorded_notices
from muwa.runtime.ranks import is_worker
from muwa.types.stages import AFTER, BEFORE, CURATE, EDIT, LIBRARIES, LOAD, OPEN, REPORT, only_measures


@recorded_notices()
def run(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> float:
    """One run: all of its stages in turn.

    Args:
        parts: What `muwa.config.build` makes of a config: `model` and `dataset` as loaders, `task` and
            `method` as callable records, `eval` as a mapping of records, `logger` as a mapping of loaders.
            Only those that the stages need are read.
        settings: The whole config as plain values.

    Returns:
        The objective (`muwa.unlearning.objective`); 0 if `eval` is not among the stages.

    Raises:
        ValueError, FileNotFoundError: Bad input. Unknown names, missing folders and missing shards are
            refused before torch is imported.
    """
    stages, task = settings["stages"], parts["task"]
    if settings["curate"]["dry_run"]:
        stages = ["curate"]
    only_eval = only_measures(stages)
    computes = "unlearn" in stages or only_eval
    progress = settings["runtime"]["progress"] and not is_worker()
    seconds: dict[str, float] = {}
    with shown.stages(_names(stages), show=progress):
        with _timed(seconds, "open"), shown.stage(OPEN):
            if computes:
                _check_patches(settings["patches"])
                cache = Path(settings["paths"]["cache"])  # one that is there may be shared, to be read only
                if not is_worker() and not cache.exists():
                    check_writable("paths.cache", cache)
            dataset: Dataset = parts["dataset"]()
            named = not only_eval or f"task.{task.names_setting}" in settings["given"]
            dataset.prepare(task.check if computes and named else lambda _: None)
        if computes:
            with _timed(seconds, "libraries"), shown.stage(LIBRARIES), libraries.loading():
                threads.wait_briefly()
                parts = dict(parts)  # makes and checks all parts; this imports torch
                from muwa import unlearning
        if "curate" in stages and not is_worker():
            with _timed(seconds, "curate"), shown.stage(CURATE):
                _curate(task, dataset, progress, dry_run=settings["curate"]["dry_run"])
        if not computes:
            return 0.0
        return unlearning.run(parts, dataset, settings, seconds)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that this block took."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _names(stages: Sequence[str]) -> list[str]:
    """What a run shows that it does, in order."""
    computes = "unlearn" in stages or only_measures(stages)
    measures = computes and "eval" in stages
    of_a_run = {
        OPEN: True,
        LIBRARIES: computes,
        CURATE: "curate" in stages,
        LOAD: computes,
        BEFORE: measures,
        EDIT: "unlearn" in stages,
        AFTER: measures,
        REPORT: measures and ("report" in stages or only_measures(stages)),
    }
    return [name for name, happens in of_a_run.items() if happens]


def _check_patches(paths: Sequence[str]) -> None:
    """Raise if a file of the setting `patches` is missing.

    Raises:
        FileNotFoundError: Names the file.
    """
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"patches: {path}: no such patch file")


def _curate(task: TaskBuilder, dataset: Dataset, progress: bool, *, dry_run: bool) -> None:
    """Write the forget sets and say where they are; with `dry_run`, only say what would be found."""
    if dry_run:
        for name, found in task.preview(dataset, progress=progress).items():
            near = ", ".join(f"{word!r} in {count}" for word, count in found.near.items()) or "none"
            nothing = "" if found.pairs else f"; single words of the name found in captions: {near}"
            print(f"{name}: {found.pairs:,} pairs in {found.shards:,} shards{nothing}")
            for caption in found.captions:
                print("    " + "".join(sign if sign.isprintable() else " " for sign in caption))
        return
    curated = task.curate(dataset, progress=progress)
    for name, folder in curated.folders.items():
        print(f"{name}: {curated.counts[name]} pairs in {folder}", file=sys.stderr)

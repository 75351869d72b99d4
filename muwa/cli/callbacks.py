"""What Hydra calls when a launch starts and ends: the folders of its runs, and the pages of a sweep."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from muwa import multirun
from muwa.config import one_line_refusals
from muwa.data.addresses import hide
from muwa.errors import message_of
from muwa.report.status import DONE, FAILED, end_run
from muwa.runtime import stopping
from muwa.runtime.ranks import is_worker
from muwa.types.report import PATCH

_SWEEP_CONFIG = "multirun.yaml"  # as Hydra's own sweeper names it


class OwnFolder(Callback):
    """Gives every launch a folder of its own, also if another started in the same second.

    A folder that is named by the time (`${now:...}`) is made here, and nobody else may have made it: the
    second launch of a second takes `<time>-2`, the third `<time>-3`. A folder that the user names is taken as
    it is: a run or multirun that is repeated there goes on there. The patch of another one is not written
    over: without it, an edit that is in use could not be taken back.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before a single run."""
        with _ended_by_os_errors(), one_line_refusals():
            if _is_named_by_time(config.hydra.run):
                with read_write(config):
                    config.hydra.run.dir = str(claimed(Path(config.hydra.run.dir)))
            else:
                _check_earlier_run(config)
            (Path(config.hydra.run.dir) / (config.hydra.output_subdir or "")).mkdir(
                parents=True, exist_ok=True
            )

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before a multirun, in the process that launches it.

        Each run composes its config anew, from the overrides of the launching process. The config is saved
        as Hydra's own sweeper saves it; a sweeper of a plugin may not. Worker ranks have no folder.
        """
        if _is_named_by_time(config.hydra.sweep):
            with _ended_by_os_errors(), one_line_refusals():
                folder = str(claimed(Path(config.hydra.sweep.dir)))
            quoted = folder.replace("\\", "\\\\").replace("'", r"\'")
            with read_write(config), open_dict(config):
                config.hydra.sweep.dir = folder
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        elif not is_worker():
            with _ended_by_os_errors(), one_line_refusals():
                _check_earlier_sweep(config)
                Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
                OmegaConf.save(config, Path(config.hydra.sweep.dir) / _SWEEP_CONFIG)


def _check_earlier_run(config: DictConfig) -> None:
    """End with one line on stderr if a run would write over the patch of a run with other settings."""
    folder = Path(config.hydra.run.dir)
    saved = folder / (config.hydra.output_subdir or "") / "overrides.yaml"
    if _writes_patch(config) and saved.is_file() and (folder / PATCH).is_file():
        _check_settings("hydra.run.dir", folder, list(OmegaConf.load(saved)), config)


def _check_earlier_sweep(config: DictConfig) -> None:
    """End with one line on stderr if a multirun would write over the patches of one with other settings."""
    folder = Path(config.hydra.sweep.dir)
    saved = folder / _SWEEP_CONFIG
    if _writes_patch(config) and saved.is_file() and any(folder.rglob(PATCH)):
        earlier = OmegaConf.select(OmegaConf.load(saved), "hydra.overrides.task", default=())
        _check_settings("hydra.sweep.dir", folder, list(earlier), config)


def _writes_patch(config: DictConfig) -> bool:
    return "unlearn" in config.stages and not config.curate.dry_run and not is_worker()


def _check_settings(key: str, folder: Path, saved: Sequence[str], config: DictConfig) -> None:
    """End with one line on stderr if these are not the settings of this launch that can change a result."""
    earlier, now = (
        [str(word) for word in words if not str(word).startswith(("runtime.", "paths."))]
        for words in (saved, config.hydra.overrides.task)
    )
    if earlier != now:
        what = "the patch of a run" if key == "hydra.run.dir" else "the patches of a multirun"
        print(
            f"muwa: {key}={folder}: holds {what} with other settings "
            f"({shlex.join(map(hide, earlier)) or 'none given'}); want a new folder, or the same settings",
            file=sys.stderr,
        )
        raise SystemExit(2)


@contextmanager
def _ended_by_os_errors() -> Iterator[None]:
    """End with one line on stderr if a folder cannot be made. Hydra would end with a traceback."""
    try:
        yield
    except OSError as error:
        print(f"muwa: {message_of(error)}; want paths.outputs=FOLDER that can be written", file=sys.stderr)
        raise SystemExit(2) from error


def _is_named_by_time(folder: DictConfig) -> bool:
    """Whether the `dir` of this node contains the time of the launch."""
    written = OmegaConf.to_container(folder, resolve=False)
    assert isinstance(written, dict)
    return "${now:" in str(written["dir"])


def claimed(folder: Path) -> Path:
    """Make a new folder: `folder`, or the first of `folder`-2, `folder`-3, ... that is not there.

    Making a folder is atomic, so two processes never get the same one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            place.mkdir()
        except FileExistsError:
            continue
        return place
    raise AssertionError("unreachable")


class SweepPages(Callback):
    """Writes sweep.csv and sweep.html next to the runs of a multirun, again after each run.

    Runs in parallel may end at any time, on any machine. Each run notes in its folder how it ended, then
    writes the pages under a lock. The last run therefore leaves them complete, even if the launching process
    is gone. Of a run that is stopped, `muwa.multirun.noted` does both: Hydra does not call `on_job_end`.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before it makes the launcher."""
        with one_line_refusals():
            multirun.prepare(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Called by Hydra after each run, done or failed, in the process that ran it."""
        if config.hydra.mode != RunMode.MULTIRUN or is_worker():
            return
        with stopping.listening():
            run = Path(config.hydra.runtime.output_dir)
            if job_return.status == JobStatus.COMPLETED:
                end_run(run, DONE)
            else:
                end_run(run, FAILED, f"{job_return._return_value}".removeprefix("muwa: "))
            multirun.write_pages(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra when every run is done, in the process that launched them."""
        if not is_worker():
            from muwa.report.terminal import print_sweep

            multirun.write_pages(Path(config.hydra.sweep.dir))
            print_sweep(Path(config.hydra.sweep.dir))

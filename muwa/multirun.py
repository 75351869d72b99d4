"""How the runs of a command end: each says so in its folder, and one that dies fails alone.

With `hydra/launcher=joblib` the runs of a multirun are made in processes. The plugin gives all runs to one
pool. If one process of a pool dies (killed, out of memory), all its runs are lost. `Joblib` takes its place.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import active_children, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException, HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from muwa.data.addresses import hide
from muwa.errors import message_of
from muwa.report.status import FAILED, STOPPED, begin_run, begin_sweep, end_run, status_of
from muwa.runtime import stopping
from muwa.runtime.ranks import is_worker

log = logging.getLogger(__name__)

PLUGIN = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
GRACE = 20  # seconds in which a run that is stopped may clean up
# Variables that limit the threads of a process, as joblib sets them for its workers.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS")  # fmt: skip


class DiedError(CompactHydraException):
    """The process of a run ended before the run did. Hydra prints the message without a traceback."""


class RefusedError(CompactHydraException):
    """A run of a multirun had bad input. Hydra prints the message at the end, without a traceback."""


@contextmanager
def noted(cfg: DictConfig) -> Iterator[None]:
    """If the run in this block is stopped or fails, say so in its launch.log.

    If a signal stops it, say so also in the status of its folder, and on the pages of its multirun.
    """
    if is_worker():
        with stopping.listening():
            yield
        return
    hydra = HydraConfig.get()
    run = Path(hydra.runtime.output_dir)
    sweep = Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None
    begin_run(run)
    if sweep is None:
        stopping.advise(_advice(cfg))

    def killed_soon() -> None:
        """Slurm kills this process soon, which works on until then: the pages are written beside it."""
        end_run(run, STOPPED, "by SIGTERM")
        threading.Thread(target=tell, daemon=True).start()

    def tell() -> None:
        log.info("stopped by SIGTERM")  # not in the handler, which may have come while a line was written
        if sweep:
            write_pages(sweep)

    try:
        with stopping.listening(), stopping.also_told(killed_soon):
            yield
    except KeyboardInterrupt as stop:
        stage = stopping.stage_of(stop)
        why = f"by {stopping.word(stop)}{f' in stage {stage}' if stage else ''}"
        end_run(run, STOPPED, why)
        log.info("stopped %s", why)
        if sweep:
            write_pages(sweep)
        raise
    except Exception as error:
        log.info("failed: %s", hide(message_of(error)))
        raise


def _advice(cfg: DictConfig) -> str:
    """What is kept of a run that is stopped, and how to go on."""
    if "unlearn" not in cfg.stages:
        return "Forget sets that are finished are kept: type the same command again for the others."
    return f"Finished stages are kept in {cfg.paths.cache}: type the same command again to go on from there."


def write_pages(sweep: Path) -> None:
    """Write sweep.csv, sweep.html and what belongs to them (`muwa.report.sweep`)."""
    from muwa.report.sweep import write_sweep  # tables and figures

    write_sweep(sweep)


def prepare(config: DictConfig) -> None:
    """Before a multirun: put `Joblib` in the plugin's place, note how many runs come, say what a stop leaves.

    Hydra takes launchers from the package hydra_plugins only, so its list of plugins is changed.
    """
    known = Plugins.instance().class_name_to_class
    if PLUGIN in known:
        known[PLUGIN] = Joblib
    sweep = config.hydra.sweep.dir
    if not is_worker():
        begin_sweep(Path(sweep), number_of_runs(config))
    if config.hydra.launcher._target_.startswith(SUBMITIT):
        stopping.advise(f"Jobs that were submitted go on and write {sweep}/sweep.csv; scancel ends them.")
    else:
        stopping.advise(
            f"{sweep}/sweep.csv says which runs are done. Finished stages are kept in {config.paths.cache}: "
            "type the same command again to go on from there."
        )


def number_of_runs(config: DictConfig) -> int | None:
    """How many runs a multirun makes.

    Returns:
        None if only its sweeper knows (Optuna's, say), or if the sweeper is going to refuse the settings.
    """
    sweeper = config.hydra.sweeper
    if sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__name__}":
        return None
    hydra = GlobalHydra.instance()  # finds the choices behind glob(*)
    parser = OverridesParser.create(hydra.config_loader() if hydra.is_initialized() else None)
    words = [f"{key}={value}" for key, value in (sweeper.params or {}).items()] + [
        *config.hydra.overrides.task
    ]
    try:
        batches = BasicSweeper.split_arguments(parser.parse_overrides(words), None)
    except HydraException:
        return None
    return sum(map(len, batches))


class Joblib(Launcher):
    """Makes each run in a process that has no other run at the same time.

    A process makes one run after another. If it dies, its run has failed, and a new process makes the others.

    Args:
        n_jobs: Number of processes, as joblib counts them; -1: one per core.
        settings: The plugin's other settings. They are of a pool for many small tasks and have no effect.
    """

    def __init__(self, *, n_jobs: int, **settings: Any):
        self._n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra after `__init__`."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Make the runs. A run whose process died is returned as failed.

        Args:
            job_overrides: The overrides of each run.
            initial_job_idx: The number of the first run.
        """
        from joblib import cpu_count, effective_n_jobs

        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        sweep, runs = Path(self._config.hydra.sweep.dir), dict(enumerate(job_overrides, initial_job_idx))
        sweep.mkdir(parents=True, exist_ok=True)
        n = max(1, min(effective_n_jobs(self._n_jobs), len(runs)))
        log.info(f"Launching {len(runs)} jobs, {n} at a time, sweep output dir : {sweep}")
        for number, overrides in runs.items():
            log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
        limit = str(max(1, cpu_count() // n))
        workers = [_Worker({name: os.environ.get(name, limit) for name in THREADS}) for _ in range(n)]
        resource_tracker.ensure_running()  # at its start it lets in what `deafen` holds back
        return self._made(runs, workers)

    def _made(self, runs: Mapping[int, Sequence[str]], workers: Sequence[_Worker]) -> list[JobReturn]:
        """The results of all runs. If a signal comes, all runs are stopped."""
        from hydra_plugins.hydra_joblib_launcher._core import execute_job

        free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in workers:
            free.put(worker)
        state = Singleton.get_state()

        def make(number: int) -> JobReturn | str:
            worker = free.get()
            try:
                job = (number, runs[number], self._context, self._config, self._task, state)
                return worker.run(execute_job, *job)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(workers), initializer=stopping.deafen) as pool:
            made = {number: pool.submit(make, number) for number in runs}
            try:
                return [self._result(number, runs[number], one.result()) for number, one in made.items()]
            except KeyboardInterrupt as stop:
                self._stop(runs, made, stop)
                raise
            finally:
                for worker in workers:
                    worker.close()

    def _result(self, number: int, overrides: Sequence[str], made: JobReturn | str) -> JobReturn:
        """What Hydra gets of a run; `made` is why its process died if it did."""
        if isinstance(made, JobReturn):
            return made
        run = self._note(number, overrides, FAILED, made)
        failed = JobReturn(overrides=list(overrides), status=JobStatus.FAILED)
        failed.return_value = DiedError(f"muwa: {run}: {made}")
        return failed

    def _note(self, number: int, overrides: Sequence[str], status: str, why: str) -> Path:
        """Note how a run ended whose process could not do so itself; returns its folder."""
        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"{config.hydra.job.name}_{number}", number
        sweep = Path(config.hydra.sweep.dir)
        run = sweep / str(config.hydra.sweep.subdir)
        if not (listed := run / ".hydra" / "overrides.yaml").is_file():  # it died before Hydra wrote it
            listed.parent.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config.hydra.overrides.task, listed)
        if not status_of(run)[0]:
            end_run(run, status, why)
        write_pages(sweep)
        return run

    def _stop(
        self,
        runs: Mapping[int, Sequence[str]],
        made: Mapping[int, Future[JobReturn | str]],
        stop: KeyboardInterrupt,
    ) -> None:
        """End all runs: each has `GRACE` seconds to say that it was stopped."""
        begun = [number for number, one in made.items() if not one.cancel() and not one.done()]
        end = time.monotonic() + GRACE
        while wait([made[number] for number in begun], 0.5).not_done:
            for process in active_children():  # those that start just now, too
                if time.monotonic() < end:
                    process.terminate()
                else:
                    process.kill()
        for number in begun:
            if not isinstance(made[number].result(), JobReturn):
                self._note(number, runs[number], STOPPED, f"by {stopping.word(stop)}")


class _Worker:
    """A process for one run after another; a new one takes its place if it dies.

    Args:
        environment: Variables of its environment.
    """

    def __init__(self, environment: Mapping[str, str]):
        self._environment = dict(environment)
        self._executor: Any = None
        self._process: BaseProcess | None = None

    def run(self, function: Callable[..., JobReturn], *arguments: Any) -> JobReturn | str:
        """`function(*arguments)` in the process, or why the process ended without a result."""
        from joblib.externals.loky import ProcessPoolExecutor

        try:
            if self._executor is None:
                self._executor = ProcessPoolExecutor(max_workers=1, env=self._environment)
            pid = self._executor.submit(os.getpid).result()
            self._process = next((one for one in active_children() if one.pid == pid), None)
            return self._executor.submit(function, *arguments).result()
        except KeyboardInterrupt as stop:
            return f"stopped by {stopping.word(stop)}"  # this process alone
        except BrokenExecutor:
            self.close()
            return _in_words(self._process.exitcode if self._process else None)

    def close(self) -> None:
        """End the process."""
        if self._executor is not None:
            self._executor.shutdown(kill_workers=True)
        self._executor = None


def _in_words(code: int | None) -> str:
    """Why a process ended, from its exit code."""
    if code is None or code >= 0:
        return f"its process ended without a result (exit code {code})"
    memory = ": out of memory?" if -code == signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{memory}"

"""One experiment from the command line: what `muwa`, `python -m muwa` and `python launch.py` run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal import hydra as composing
from hydra._internal import utils as running
from omegaconf import DictConfig

from muwa import command_line, config  # without torch: help and refusals come at once
from muwa.runtime.notices import recorded_notices


@hydra.main(version_base="1.3", config_path=str(command_line.CONF), config_name="config")
def experiment(cfg: DictConfig) -> float:
    """Run the pipeline on the parts of the config. Returns the objective, which a sweeper minimises."""
    from muwa import pipeline  # help and completion do without it

    with config.one_line_errors(cfg), recorded_notices():
        parts = config.Parts(cfg)
        config.tell_unused(cfg)
        return pipeline.run(parts, config.settings(cfg))


def main() -> None:
    """Read the command line, compose the config, and run it: once, or in a multirun."""
    command_line.adapt_command_line()
    config.register()
    with _before_hydra_reports(), config.one_line_refusals():
        experiment()


@contextmanager
def _before_hydra_reports() -> Iterator[None]:
    """In this block, `config.one_line_refusals` takes the errors that Hydra itself would print.

    Hydra catches an error, prints several lines and exits, all in one function, which is replaced here.
    """
    theirs = running.run_and_report

    def ours(func: Callable[[], Any]) -> Any:
        def told() -> Any:
            with config.one_line_refusals():
                return func()

        return theirs(told)

    running.run_and_report = composing.run_and_report = ours
    try:
        yield
    finally:
        running.run_and_report = composing.run_and_report = theirs

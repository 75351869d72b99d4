"""One experiment from the command line: what `muwa`, `python -m muwa` and `python launch.py` run."""

import hydra
from omegaconf import DictConfig

from muwa import command_line, config  # without torch: help and refusals come at once


@hydra.main(version_base="1.3", config_path=str(command_line.CONF), config_name="config")
def experiment(cfg: DictConfig) -> float:
    """Run the pipeline on the parts of the config. Returns the objective, which a sweeper minimises."""
    from muwa import pipeline  # help and completion do without it

    with config.one_line_errors(cfg):
        return pipeline.run(config.Parts(cfg), config.settings(cfg))


def main() -> None:
    """Read the command line, compose the config, and run it: once, or in a multirun."""
    command_line.adapt_command_line()
    config.register()
    experiment()

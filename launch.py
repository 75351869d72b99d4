"""Run one unlearning experiment.

python launch.py                                              # the miniature: no download, no GPU
python launch.py task.identity=Edda_Everlane                  # another person
python launch.py -m task.identity=Kael_Lindqvar,Edda_Everlane # one run each, then sweep.html
python launch.py --cfg job                                    # print the config, do not run
"""

from muwa.runtime import stopping

if __name__ == "__main__":
    stopping.leave_at_once("muwa")  # during the imports below, which take a second

import hydra
from omegaconf import DictConfig

from muwa import command_line, config, pipeline  # all without torch: help and refusals come at once

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Run the pipeline on the parts of the config. Returns the objective, which a sweeper minimises."""
    with config.one_line_errors(cfg):
        return pipeline.run(config.Parts(cfg), config.settings(cfg))


if __name__ == "__main__":
    with stopping.one_line("muwa", "Nothing was computed."):
        command_line.adapt_command_line()
        main()

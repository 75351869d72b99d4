"""What Hydra refuses while it composes a config is said in one line, in the words of muwa's other messages."""

import re
import subprocess
import sys

import pytest
from conftest import CONF

from muwa import config
from muwa.cli.refused import Refusal, in_one_line

OF_ANOTHER_CHOICE = "'object' is no setting of the task in use; it is one of task=object"


@pytest.mark.parametrize(("words", "said"), [
    (["seed=abc"], "seed: got 'abc', want a whole number"),
    (["seed=1e3"], "seed: got 1000.0, want a whole number"),
    (["++seed=abc"], "seed: got 'abc', want a whole number"),
    (["runtime.progress=banana"], "runtime.progress: got 'banana', want true or false"),
    (["verdict.kept_points=x"], "verdict.kept_points: got 'x', want a number"),
    (["paths.outputs=[a]"], "paths.outputs: got ['a'], want a text"),
    (["request.id=[a]"], "request.id: got ['a'], want a text"),
    (["stages=unlearn"], "stages: got 'unlearn', want a list"),
    (["runtime=cuda"], "runtime=cuda: want one of its settings, runtime.device=VALUE"),
    (["task.object=x"], f"task.object=x: {OF_ANOTHER_CHOICE}"),
    (["task=object", "task.identity=A"], "task.identity=A: 'identity' is no setting of the task in use; "
                                         "it is one of task=celeba"),
    (["model.path=/tmp"], "model.path=/tmp: 'path' is no setting of the model in use; it is one of model=clip_hf|llava15_13b|"
     "llava15_7b|llava16_7b|sd|sd15|sd21|sdxl|vlm"),
    (["eval.mia.seeds=3"], "eval.mia.seeds=3: 'mia.seeds' is no setting of the eval in use; it is one of eval=mia"),
    (["hydra.run.foo=1"], "hydra.run.foo=1: Key 'foo' not in 'RunDir'"),
    (["hydra/launcher=nope"], "hydra/launcher=nope: want one of basic, joblib, slurm, submitit_local, submitit_slurm"),
    (["~foo"], "Could not delete from config. 'foo' does not exist."),
])  # fmt: skip
def test_one_line_says_what_is_wanted(words, said):
    with pytest.raises(ValueError, match=re.escape(said)) as told:
        config.composed(*words)
    assert str(told.value) == said


def test_an_error_that_names_no_setting_is_cut_to_its_first_line():
    found = Refusal("", "first\nsecond")
    assert in_one_line(found, ["seed=1"], [CONF], config.Root, config.RANGES) == "first"


@pytest.mark.parametrize(("words", "said"), [
    (["task.object=x"], f"task.object=x: {OF_ANOTHER_CHOICE}"),
    (["-m", "seed=1,abc"], "seed: got 'abc', want a whole number"),
    (["--help", "seed=abc"], "seed: got 'abc', want a whole number"),
    (["name=${foo}"], "hydra.run.dir: Interpolation key 'foo' not found"),
    (["-m", "seed=1,2", "hydra.sweep.dir=${foo}"], "hydra.sweep.dir=${foo}: Interpolation key 'foo' not found"),
    (["--config-name", "nope"], "Cannot find primary config 'nope'. Check that it's in your config search path."),
])  # fmt: skip
def test_a_command_ends_with_that_line(words, said, tmp_path):
    """Whoever composes: a run, a multirun, the help, Hydra's callbacks."""
    command = [sys.executable, "launch.py", *words, f"paths.outputs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CONF.parents[1], check=False)
    assert (done.returncode, done.stderr) == (2, f"muwa: {said}\n")

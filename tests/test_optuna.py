"""hydra/sweeper=optuna in an environment of its own, with exactly what the extra `optuna` of pyproject.toml asks for."""

import json
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from conftest import SMALL

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of a new environment that has the extra, and behind it all packages of this one."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][
        "optuna"
    ]
    folder = tmp_path_factory.mktemp("optuna")
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    here = folder / "bin" / "python"
    done = subprocess.run(
        [here, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"pip cannot install {wanted}: {done.stderr[-500:]}")
    return here


@pytest.mark.slow
def test_a_search_over_layer_and_step_finds_the_best_and_goes_on(python, miniature, tmp_path):
    """Two searches of two runs in one store: the second knows the runs of the first."""
    command = [python, ROOT / "launch.py", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1",
               "hydra.sweeper.sampler.seed=0", "hydra.sweeper.study_name=steps",
               f"hydra.sweeper.storage=sqlite:///{tmp_path}/steps.db", "layer_search=fixed",
               "layer_search.layer=choice(visual.proj,text_projection)",
               "layer_search.relative_step=tag(log,interval(0.1,3))",
               f"paths.outputs={tmp_path}", f"dataset.root={miniature}", *SMALL]  # fmt: skip
    for _ in range(2):
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "Using an existing study with name 'steps'" in done.stderr + done.stdout
    sweeps = sorted(tmp_path.glob("runs/*/*/optimization_results.yaml"))
    best = yaml.safe_load(sweeps[-1].read_text())
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/*/results.json")]
    assert len(sweeps) == 2
    assert len(runs) == 4
    assert best["best_value"] == pytest.approx(min(run["objective"] for run in runs))
    assert best["best_params"]["layer_search.layer"] in {run["edit"]["layer"] for run in runs}

"""How the threads of a run share the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from muwa.runtime import threads

ROOT = Path(__file__).parent.parent.parent
BOUND = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from muwa.runtime import threads
print(threads.available())
"""


def test_waiting_threads_give_up_their_core_soon():
    environment = {}
    threads.wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": str(threads.SPINS)}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_setting_of_the_user_is_left_alone(name):
    environment = {name: "7"}
    threads.wait_briefly(environment)
    assert environment == {name: "7"}


def test_slurm_may_give_fewer_cores_than_the_machine_has_but_not_more():
    cores = threads.available({})
    assert cores >= 1
    assert threads.available({"SLURM_CPUS_PER_TASK": "1"}) == 1
    assert threads.available({"SLURM_CPUS_PER_TASK": str(cores + 5)}) == cores
    assert threads.available({"SLURM_CPUS_PER_TASK": "all"}) == cores


def test_a_process_bound_to_one_core_has_one():
    done = subprocess.run([sys.executable, "-c", BOUND], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "1"


def spins(tmp_path, miniature, **environment):
    """What a run's OpenMP waits: GNU's prints what it read when torch loads it. The run goes no further."""
    (tmp_path / "empty.pt").touch()
    words = ("model.name=ViT-B-32", f"model.pretrained={tmp_path}/empty.pt", f"dataset.root={miniature}")
    clean = {name: value for name, value in os.environ.items() if name not in threads.WAITING}
    with subprocess.Popen(
        [sys.executable, "launch.py", *words, f"paths.outputs={tmp_path}"], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**clean, "OMP_DISPLAY_ENV": "verbose", **environment},
    ) as process:  # fmt: skip
        found = next((line.strip() for line in process.stderr if "SPINCOUNT" in line), "nothing")
        process.kill()
    return found


@pytest.mark.whole
def test_openmp_reads_the_policy_before_torch_starts_it(tmp_path, miniature):
    assert spins(tmp_path, miniature) == f"GOMP_SPINCOUNT = '{threads.SPINS}'"
    assert spins(tmp_path, miniature, GOMP_SPINCOUNT="77") == "GOMP_SPINCOUNT = '77'"


@pytest.mark.slow
def test_runs_side_by_side_share_the_cores(tmp_path, miniature):
    """Two runs at a time: each takes half of the cores, without runtime.threads."""
    words = ("-m", "task.identity=Kael_Lindqvar,Lior_Garrowby", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
             "task.limits.retain_pairs=96", "layer_search.max_evals=1")  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "launch.py", *words, f"dataset.root={miniature}", f"paths.outputs={tmp_path}"]
    subprocess.run(command, cwd=ROOT, env=clean, check=True, capture_output=True)
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    each = max(1, threads.available({}) // 2)
    assert [one["provenance"]["machine"].split(", ")[1] for one in found] == [f"{each} threads"] * 2

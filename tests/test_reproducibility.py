"""What docs/reproducibility.md says: what is equal to the bit, and what only to a tolerance."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from bench.same import EQUAL, apart, compared, gradient, run_in
from muwa.gradients.base import Recipe
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import mean_gradients
from muwa.run import Run

ROOT = Path(__file__).parent.parent
SMALL = (
    "task.limits.forget_pairs=16", "task.limits.retain_pairs=64", "task.limits.eval_retain=1", "eval=[forget,retain]",
    "dataset.utility_probe=0.05", "dataset.utility=0.1", "runtime.progress=false", "layer_search.max_evals=6", "layer_search.candidates=1",
)  # fmt: skip


@pytest.fixture
def threads():
    """Sets the number of torch's threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_gradient_is_equal_to_the_bit_with_the_same_threads_and_close_with_others(tmp_path, threads):
    for name, count in (("one", 1), ("again", 1), ("two", 2)):
        threads(count)
        found = mean_gradients(
            tiny.clip(), tiny.task(), tiny.NAMES[0], Recipe("cosine", "contrastive", 5, 0, "fp32"), Run()
        )
        write_gradients(tmp_path / name, found)
    one, again, two = (load_file(tmp_path / name) for name in ("one", "again", "two"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "again").read_bytes()
    assert apart(one, two) < 1e-5


def launch(miniature, out, *words, before=()):
    """A run with a cache of its own; returns its `paths.outputs`."""
    command = [
        sys.executable,
        *before,
        "launch.py",
        *words,
        *SMALL,
        f"dataset.root={miniature}",
        f"paths.outputs={out}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def single(miniature, tmp_path_factory):
    """A run in one process with one thread, which makes an edit."""
    out = launch(miniature, tmp_path_factory.mktemp("one"), "runtime.threads=1")
    assert json.loads((run_in(out) / "results.json").read_text())["edit"]["step"]
    return out


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes(single, miniature, tmp_path):
    assert set(compared(single, launch(miniature, tmp_path, "runtime.threads=1")).values()) == {EQUAL}


RANKS = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29671")


@pytest.mark.slow
@pytest.mark.parametrize(("words", "before"), [(["runtime.threads=2"], ()), (["runtime.threads=1"], RANKS)])
def test_other_threads_and_processes_give_the_same_up_to_rounding(single, miniature, tmp_path, words, before):
    other = launch(miniature, tmp_path, *words, before=before)
    for stage in ("forget", "retain"):
        assert apart(gradient(single, stage), gradient(other, stage)) < 1e-5
    said = compared(single, other)
    assert (said["layer"], said["evaluations"]) == (EQUAL, EQUAL)
    one, two = (json.loads((run_in(out) / "results.json").read_text()) for out in (single, other))
    assert one["edit"]["step"] == pytest.approx(two["edit"]["step"], rel=1e-4)
    for name, metric in one["metrics"]["after"].items():
        assert metric["value"] == pytest.approx(two["metrics"]["after"][name]["value"], rel=1e-4)
    patches = [load_file(run_in(out) / "patch.safetensors") for out in (single, other)]
    assert apart(*patches) < 1e-3  # whitening enlarges small differences


@pytest.mark.slow
def test_runs_side_by_side_give_the_same_bytes_as_one_after_another(miniature, tmp_path):
    names = ("-m", "hydra/launcher=joblib", "task.identity=Kael_Lindqvar,Lior_Garrowby", "runtime.threads=1")
    outs = [launch(miniature, tmp_path / str(n), *names, f"hydra.launcher.n_jobs={n}") for n in (1, 2)]
    first, second = (
        [path.read_bytes() for path in sorted(out.glob("runs/*/*/*/patch.safetensors"))] for out in outs
    )
    assert len(first) == 2
    assert first == second

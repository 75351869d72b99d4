import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import tiny
import torch
from safetensors.torch import load_file

from muwa.gradients.base import Recipe
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import mean_gradients
from muwa.run import Run
from muwa.runtime.distributed import ALONE, Distributed, join

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import tiny
from muwa.cache.store import Store
from muwa.gradients.base import Recipe
from muwa.gradients.files import write_gradients
from muwa.gradients.mean import mean_gradients
from muwa.run import Run
from muwa.runtime.distributed import join

out, micro = Path(sys.argv[1]), int(sys.argv[2]) or None
with join("cpu") as ranks:
    store = Store(out / "cache")
    recipe = Recipe("cosine", "contrastive", 5, 0, "fp32", micro)
    for turn in range(2):
        found = mean_gradients(tiny.clip(), tiny.task(), tiny.NAMES[0], recipe, Run(store, distributed=ranks))
        assert (found is None) == (not ranks.is_main)
        if found is not None:
            write_gradients(out / f"{turn}.safetensors", found)
    (out / f"events{ranks.rank}").write_text(repr(store.events))
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def ranks(processes, *command):
    """A program in several processes, with the environment that torchrun gives to each."""
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}  # fmt: skip
    programs = [
        forked.start(*command, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(processes)
    ]
    for program in programs:
        _, stderr = program.communicate()
        assert program.poll() == 0, stderr


def torchrun(processes, *command, cwd=ROOT, code=0, **environment):
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        "--master-addr=127.0.0.1",
    ]
    done = subprocess.run([*run, f"--master-port={free_port()}", *command], cwd=cwd, text=True, capture_output=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **environment})  # fmt: skip
    assert done.returncode == code, done.stderr[-3000:]
    return done


def test_shares_cover_a_batch_once():
    for n in (0, 1, 5, 8):
        for size in (1, 2, 3, 8):
            assert [i for rank in range(size) for i in Distributed(rank, size).share(n)] == list(range(n))


def test_alone_everything_stays_as_it_is():
    rows = torch.ones(2, 3, requires_grad=True)
    assert ALONE.broadcast("x") == "x"
    assert torch.equal(ALONE.gather(rows, 2), rows)
    assert not ALONE.gather(rows, 2).requires_grad
    with join("cpu") as ranks:
        assert ranks is ALONE


def test_a_named_gpu_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match="runtime.device=cuda:1: torchrun gives each process its own GPU"),
        join("cuda:1"),
    ):
        pass


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.whole
def test_two_processes_give_the_gradient_of_one(tmp_path, micro):
    """Batches of 5 are shared 2 and 3, the last one of 2 pairs 1 and 1; both with whole shares and in parts of one pair."""
    (tmp_path / "program.py").write_text(PROGRAM)
    ranks(2, str(tmp_path / "program.py"), str(tmp_path), str(micro))
    recipe = Recipe("cosine", "contrastive", 5, 0, "fp32")
    one = mean_gradients(tiny.clip(), tiny.task(), tiny.NAMES[0], recipe, Run())
    write_gradients(tmp_path / "one.safetensors", one)
    want, got = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "0.safetensors")
    tiny.same_gradients(got, want)
    again = load_file(
        tmp_path / "1.safetensors"
    )  # the second turn is read back, and no rank waits for another
    assert all(torch.equal(again[name], got[name]) for name in got)
    assert "'partial'" in (tmp_path / "events0").read_text()


KILLING = """
import os, signal
from muwa.runtime import distributed
if os.environ["RANK"] == os.environ["KILLED"]:
    gather, calls = distributed.Distributed.gather, []
    def killed(self, rows, n):
        calls.append(n)
        if len(calls) == 3:  # of the gradient pass, two for each batch
            os.kill(os.getpid(), signal.SIGKILL)
        return gather(self, rows, n)
    distributed.Distributed.gather = killed
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_all_and_the_same_command_goes_on(tmp_path, rank):
    program = tmp_path / "program.py"
    program.write_text(KILLING + PROGRAM)
    started = time.monotonic()
    done = torchrun(2, str(program), str(tmp_path), "0", code=1, KILLED=str(rank), PYTHONPATH=str(ROOT))
    assert time.monotonic() - started < 120
    assert (
        "ConnectionError: torchrun: another process of this run is gone. Finished stages are kept"
        in done.stderr
    )
    assert not list(tmp_path.glob("cache/**/value.json"))
    assert not list(tmp_path.rglob("*.draft"))
    torchrun(2, str(program), str(tmp_path), "0", KILLED="none", PYTHONPATH=str(ROOT))
    one = mean_gradients(
        tiny.clip(), tiny.task(), tiny.NAMES[0], Recipe("cosine", "contrastive", 5, 0, "fp32"), Run()
    )
    write_gradients(tmp_path / "one.safetensors", one)
    tiny.same_gradients(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "one.safetensors"))


def test_a_process_that_is_gone_is_said_in_one_line(monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("Connection closed by peer\nmore")

    monkeypatch.setattr("torch.distributed.all_reduce", fail)
    with pytest.raises(ConnectionError, match=r"go on from there. It was told: Connection closed by peer$"):
        Distributed(0, 2).add([torch.ones(1)])


@pytest.mark.whole
def test_a_run_by_torchrun_is_one_run_with_the_results_of_one_process(miniature, tmp_path):
    small = ["task.limits.forget_pairs=8", "task.limits.retain_pairs=24", "task.limits.eval_retain=1", "dataset.utility=0.05",
             "dataset.utility_probe=0.02", "layer_search.max_evals=2", "layer_search.towers=[text]",
             f"dataset.root={miniature}"]  # fmt: skip
    torchrun(2, str(ROOT / "launch.py"), *small, f"paths.outputs={tmp_path}/two")
    alone = forked.run(forked.LAUNCH, *small, f"paths.outputs={tmp_path}/one")
    assert alone.returncode == 0, alone.stderr
    two, one = (list((tmp_path / name / "runs").glob("*/*")) for name in ("two", "one"))
    assert len(two) == len(one) == 1
    a, b = (json.loads((run[0] / "results.json").read_text()) for run in (two, one))
    assert [row["layer"] for row in a["front"]] == [row["layer"] for row in b["front"]]
    for x, y in zip(a["scores"], b["scores"], strict=True):
        assert x["importance"] == pytest.approx(y["importance"], rel=1e-4)
    assert [row["step"] for row in a["trace"]] == pytest.approx([row["step"] for row in b["trace"]], rel=1e-4)
    for name, metric in a["metrics"]["after"].items():
        assert metric["value"] == pytest.approx(b["metrics"]["after"][name]["value"], abs=1e-6)
    assert not list(tmp_path.glob("two/**/1")), "a helping rank left a folder"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_a_gpu_is_refused_before_it_joins(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"runtime.device=cuda:1: not usable here"), join("cuda"):
        pass

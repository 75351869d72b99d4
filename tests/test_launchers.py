"""Multiruns in several processes and on a real Slurm: one cache for all, whole pages, and a preempted job that goes on."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm as real

ROOT = Path(__file__).parent.parent
SMALL = (
    "task.limits.forget_pairs=16",
    "task.limits.retain_pairs=32",
    "task.limits.eval_retain=1",
    "layer_search=fixed",
    "layer_search.layer=visual.proj",
    "layer_search.relative_step=0.2",
    "dataset.utility_probe=0.05",
    "dataset.utility=0.1",
    "eval=[forget,retain]",
    "runtime.progress=false",
    "runtime.threads=1",
)
TWO = "task.identity=Kael_Lindqvar,Lior_Garrowby"


@pytest.fixture(scope="module")
def start(miniature):
    """start(out, launcher, *overrides, env=...) -> `python launch.py -m hydra/launcher=...` as a user types it."""
    started = []

    def begin(out, launcher, *overrides, env=None):
        command = [
            sys.executable,
            str(ROOT / "launch.py"),
            "-m",
            f"hydra/launcher={launcher}",
            *SMALL,
            *overrides,
        ]
        command += [f"paths.outputs={out}", f"dataset.root={miniature}"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out, env=env
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def finish(process, out):
    """Wait for a multirun; returns (its folder, the rows of sweep.csv, results.json of each run)."""
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    (table,) = out.glob("runs/*/*/sweep.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    return (
        table.parent,
        rows,
        [json.loads((table.parent / row["run"] / "results.json").read_text()) for row in rows],
    )


def check_two_that_shared(folder, rows, results, cache):
    """Both are done and stand in the pages; what is common to them was computed by one and read by the other."""
    assert [row["task.identity"] for row in rows] == ["Kael_Lindqvar", "Lior_Garrowby"]
    assert [row["status"] for row in rows] == ["done", "done"]
    assert "2 of 2 runs are done" in (folder / "sweep.html").read_text()
    # of the whole retain set, which both need, and of the pairs that mention each name
    assert sorted(found["cache"]["moments/inputs"] for found in results) == ["miss", "partial"]
    assert len(list(cache.glob("moments/inputs/*/value.json"))) == 3
    assert len(list(cache.glob("gradients/forget/*/value.json"))) == 2
    assert not list(cache.rglob("*.draft"))
    for row, found in zip(rows, results, strict=True):  # each says how to make it alone
        command = found["provenance"]["command"]
        assert command.startswith("python launch.py ")
        assert f"task.identity={row['task.identity']} " in command


@pytest.mark.whole
def test_two_processes_share_one_cache(start, tmp_path):
    process = start(tmp_path, "joblib", "hydra.launcher.n_jobs=2", TWO)
    check_two_that_shared(*finish(process, tmp_path), tmp_path / "cache")


@pytest.fixture(scope="module")
def slurm():
    """The environment of a real Slurm on this machine, stopped afterwards."""
    if why := real.missing():
        pytest.skip(why)
    with real.cluster() as env:
        yield env


@pytest.fixture(scope="module")
def preemption(slurm, start, tmp_path_factory):
    """A sweep whose one job has its gradients when an urgent sweep wants all CPUs: what `finish` says of each, and more.

    The first attempt of that job stands still after its gradients, so that it is met there on a machine of any speed;
    the urgent sweep is held in the queue until then.
    """
    low, high = (tmp_path_factory.mktemp(name) for name in ("low", "high"))
    first = start(low, "slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=2",
                  "task.identity=Kael_Lindqvar", "+logger.brake={_target_: slurm.Brake, _partial_: true}",
                  env={**slurm, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"})  # fmt: skip
    second = start(high, "slurm", "hydra.launcher.partition=high", "hydra.launcher.cpus_per_task=1", TWO,
                   "+hydra.launcher.additional_parameters.hold=true", env=slurm)  # fmt: skip

    def job(partition):
        return real.ask(slurm, "squeue", "-h", "-p", partition, "-o", "%F").strip()

    def ready():
        assert first.poll() is None, first.communicate()
        assert second.poll() is None, second.communicate()
        return job("high") and "gradients" in events(low)

    real.wait(ready, "the gradients", 120)
    number, computed = job("low"), times(low)
    real.ask(slurm, "scontrol", "release", job("high"))
    real.wait(
        lambda: real.ask(slurm, "squeue", "-h", "-j", number, "-o", "%T").strip() == "PENDING",
        "preemption",
        60,
    )
    assert not list(low.glob("runs/*/*/0/results.json"))
    urgent, preempted = finish(second, high), finish(first, low)
    restarts = "Restarts=1 " in real.ask(slurm, "scontrol", "show", "job", number)
    return {"low": low, "high": high, "urgent": urgent, "preempted": preempted, "restarts": restarts,
            "computed": computed}  # fmt: skip


@pytest.mark.whole
def test_two_jobs_of_slurm_share_one_cache(preemption):
    check_two_that_shared(*preemption["urgent"], preemption["high"] / "cache")
    folder = preemption["urgent"][0]
    assert len(list(folder.glob(".submitit/*_[01]/*_result.pkl"))) == 2  # one array of two jobs


@pytest.mark.whole
def test_a_preempted_job_is_requeued_and_goes_on(preemption):
    assert preemption["restarts"]
    _, rows, (found,) = preemption["preempted"]
    assert [row["status"] for row in rows] == ["done"]
    computed = preemption["computed"]
    stages = {"/".join(path.parts[-4:-2]) for path in computed}
    assert stages >= {"gradients/forget", "moments/inputs"}
    assert {found["cache"][stage] for stage in stages} == {"hit"}
    assert times(preemption["low"]).items() >= computed.items()
    assert events(preemption["low"]).count("config") == 2


def events(out):
    """What the one run below `out` has logged."""
    lines = [
        line for file in out.glob("runs/*/*/0/metrics.jsonl") for line in file.read_text().split("\n")[:-1]
    ]
    return [json.loads(line)["event"] for line in lines]


def times(out):
    """When each gradient and moment in the cache was written."""
    kept = [path for stage in ("gradients", "moments") for path in out.glob(f"cache/{stage}/*/*/value.json")]
    return {path: path.stat().st_mtime_ns for path in kept}


@pytest.mark.slow
def test_a_cancelled_job_says_that_it_was_stopped(slurm, start, tmp_path):
    """scancel sends SIGTERM, which submitit lets pass, and SIGKILL after KillWait. The job notes it and is killed."""
    conf = Path(slurm["SLURM_CONF"])
    conf.write_text(
        conf.read_text().replace("KillWait=2", "KillWait=20")
    )  # time for the pages; 30 by default
    real.ask(slurm, "scontrol", "reconfigure")
    process = start(tmp_path, "slurm", "hydra.launcher.partition=low", "hydra.launcher.cpus_per_task=2",
                    "task.identity=Kael_Lindqvar", "+logger.brake={_target_: slurm.Brake, _partial_: true}",
                    env={**slurm, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"})  # fmt: skip

    def braked():
        assert process.poll() is None, process.communicate()
        return "gradients" in events(tmp_path)

    real.wait(braked, "the gradients", 240)
    number = real.ask(slurm, "squeue", "-h", "-p", "low", "-o", "%F").strip()
    real.ask(slurm, "scancel", number)
    real.wait(lambda: list(tmp_path.glob("runs/*/*/0/.hydra/status.txt")), "the status", 30)
    (table,) = (
        run.parent.parent.parent / "sweep.csv" for run in tmp_path.glob("runs/*/*/0/.hydra/status.txt")
    )
    real.wait(table.is_file, "sweep.csv", 60)
    (row,) = csv.DictReader(table.read_text().splitlines())
    assert (row["status"], row["why"]) == ("stopped", "by SIGTERM")
    process.send_signal(signal.SIGINT)  # without accounting the command would wait on
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].endswith("scancel ends them.")

"""Each run of a multirun says how it ended; with joblib, a run whose process dies fails alone."""

import csv
import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muwa.multirun import _in_words, _Worker
from muwa.report.status import planned_runs

ROOT = Path(__file__).parent.parent
# A program with muwa's config whose runs wait instead of computing. Run 0 is done at once.
PROGRAM = """
import os, sys, time
from pathlib import Path
from muwa.runtime import stopping
import hydra
from hydra.core.hydra_config import HydraConfig
from muwa import config
config.register()

@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def main(cfg):
    with config.one_line_errors(cfg):
        out, run = Path(cfg.paths.outputs), HydraConfig.get().job.num
        (out / f"{{run}}.pid").write_text(str(os.getpid()))
        if cfg.seed == 2:
            raise ValueError("seed: got 2")
        if cfg.seed:
            time.sleep(0.0 if (out / "go").exists() else 60)
        return 0.0

if __name__ == "__main__":
    with stopping.one_line("muwa", "Nothing was computed."):
        main()
"""


@pytest.fixture
def multirun(tmp_path):
    """multirun(*words) -> the process of a multirun whose run 1 has begun."""
    (tmp_path / "program.py").write_text(PROGRAM.format(conf=str(ROOT / "muwa" / "conf")))
    begun = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "program.py"), "-m", *words, f"paths.outputs={tmp_path}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        begun.append(process)
        end = time.monotonic() + 240
        while not (tmp_path / "1.pid").exists() or not (tmp_path / "1.pid").read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def rows(tmp_path):
    """Run -> (status, why) in sweep.csv; the page says the same words."""
    (table,) = glob.glob(f"{tmp_path}/runs/*/*/sweep.csv")
    page = Path(table).with_name("sweep.html").read_text()
    lines = csv.DictReader(Path(table).read_text().splitlines())
    found = {row["run"]: (row["status"], row.get("why", "")) for row in lines}
    assert all(status in page for status, _ in found.values())
    return found


JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


@pytest.mark.whole
def test_a_run_whose_process_is_killed_fails_alone(multirun, tmp_path):
    process = multirun(*JOBLIB, "seed=0,1,3")
    (tmp_path / "go").touch()
    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    why = "its process was killed by SIGKILL: out of memory?"
    assert rows(tmp_path) == {"0": ("done", ""), "1": ("failed", why), "2": ("done", "")}
    assert why in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "launcher", [(), pytest.param(JOBLIB, marks=pytest.mark.slow)], ids=["one by one", "joblib"]
)
@pytest.mark.whole
def test_a_run_of_bad_input_fails_alone_and_says_so_in_one_line(multirun, tmp_path, launcher):
    (tmp_path / "go").touch()
    process = multirun(*launcher, "seed=0,2,3")
    _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert rows(tmp_path) == {"0": ("done", ""), "1": ("failed", "seed: got 2"), "2": ("done", "")}
    (page,) = tmp_path.glob("runs/*/*/sweep.html")
    assert "2 of 3 runs are done, 1 failed." in page.read_text()
    assert planned_runs(page.parent) == 3
    assert "muwa: seed: got 2" in said.splitlines()
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_stops_all_runs_of_a_multirun_in_processes(multirun, tmp_path):
    process = multirun(*JOBLIB, "seed=0,1,3")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: all processes get it
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130
    (line,) = said.splitlines()
    assert line.startswith("muwa: stopped by Ctrl-C. ")
    assert "sweep.csv says which runs are done. Finished stages are kept in" in line
    found = rows(tmp_path)
    assert found["0"] == ("done", "")
    assert {status for run, (status, _) in found.items() if run != "0"} == {"stopped"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_multirun_in_one_process(multirun, tmp_path, number, code):
    process = multirun("seed=0,1,3")
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert len(said.splitlines()) == 1
    assert rows(tmp_path) == {
        "0": ("done", ""), "1": ("stopped", f"by {'Ctrl-C' if code == 130 else 'SIGTERM'}")
    }  # fmt: skip
    (page,) = tmp_path.glob("runs/*/*/sweep.html")
    assert "1 of 3 runs are done, 1 stopped, 1 not started." in page.read_text()


@pytest.mark.slow
def test_why_a_run_failed_stands_in_the_table(multirun, tmp_path):
    (tmp_path / "go").touch()
    process = multirun("seed=2,1")
    process.communicate(timeout=240)
    assert process.returncode == 1
    assert rows(tmp_path) == {"0": ("failed", "seed: got 2"), "1": ("done", "")}


@pytest.mark.slow
def test_a_process_alone_that_is_stopped_does_not_stop_the_others(multirun, tmp_path):
    process = multirun(*JOBLIB, "seed=0,1,3")
    (tmp_path / "go").touch()
    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGTERM)
    process.communicate(timeout=240)
    assert process.returncode == 1
    assert rows(tmp_path) == {"0": ("done", ""), "1": ("stopped", "by SIGTERM"), "2": ("done", "")}


@pytest.mark.parametrize(
    ("seed", "number", "said"),
    [
        pytest.param(1, signal.SIGINT, "stopped by Ctrl-C", marks=pytest.mark.slow),
        (1, signal.SIGTERM, "stopped by SIGTERM"),
        (2, None, "failed: seed: got 2"),
    ],
)
@pytest.mark.whole
def test_the_log_of_a_run_says_how_it_ended(tmp_path, seed, number, said):
    (tmp_path / "program.py").write_text(PROGRAM.format(conf=str(ROOT / "muwa" / "conf")))
    words = ["-m", f"seed={seed}", f"paths.outputs={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    process = subprocess.Popen([sys.executable, str(tmp_path / "program.py"), *words], stderr=subprocess.PIPE, text=True,
                               cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    while number and not list(tmp_path.glob("*.pid")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    if number:
        process.send_signal(number)
    process.communicate(timeout=60)
    assert (tmp_path / "sweep" / "0" / "program.log").read_text().endswith(f"[muwa.multirun][INFO] {said}\n")


def test_a_worker_that_died_is_replaced():
    worker = _Worker({"OMP_NUM_THREADS": "3"})
    assert worker.run(os._exit, 3) == "its process ended without a result (exit code 3)"
    assert worker.run(os.getenv, "OMP_NUM_THREADS") == "3"
    worker.close()


def test_why_a_process_ended():
    assert _in_words(-signal.SIGSEGV) == "its process was killed by SIGSEGV"
    assert _in_words(-signal.SIGKILL).endswith("SIGKILL: out of memory?")
    assert _in_words(None) == "its process ended without a result (exit code None)"

"""A whole run that a signal stops: one line, a record in its folder, nothing half-written, and it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = (
    "task.limits.forget_pairs=16", "task.limits.retain_pairs=64", "task.limits.eval_retain=1", "eval=[forget,retain]",
    "dataset.utility_probe=0.05", "dataset.utility=0.1", "runtime.progress=false", "runtime.threads=1",
    "layer_search=fixed", "layer_search.layer=visual.proj", "layer_search.relative_step=0.2",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_run_is_stopped_with_one_line_and_goes_on(miniature, tmp_path, number, code, word):
    run, cache = tmp_path / "run", tmp_path / "cache"
    command = [sys.executable, "launch.py", *SMALL, f"paths.outputs={tmp_path}", f"hydra.run.dir={run}",
               f"dataset.root={miniature}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(cache.glob("gradients/*/*/value.json")):  # the forget gradient
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert said.startswith(f"muwa: stopped by {word}")
    assert said.endswith(
        f"Finished stages are kept in {cache}: type the same command again to go on from there.\n"
    )
    assert len(said.splitlines()) == 1
    assert (run / ".hydra" / "status.txt").read_text().startswith(f"stopped\nby {word}")
    log = (run / "launch.log").read_text()
    assert log.splitlines()[-1].partition("[INFO] ")[2].startswith(f"stopped by {word}")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["by"]) == ("stopped", word)
    assert not list(tmp_path.rglob("*.draft"))
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("gradients/*/*/value.json")}
    subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert not (run / ".hydra" / "status.txt").exists()
    assert (run / "results.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_every_command_wraps_its_work_in_a_line_of_its_own():
    """Each module that is run with `python -m` ends a signal with one line, under its own name."""
    found = {}
    for path in (ROOT / "muwa").rglob("*.py"):
        if path == ROOT / "muwa" / "__main__.py":
            continue  # the command `muwa`: tests/cli
        _, _, guarded = path.read_text().rpartition('if __name__ == "__main__":')
        if guarded and path.read_text() != guarded:
            name = (
                path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
            )
            found[name] = "stopping.one_line(" in guarded and f'"{name}", ' in guarded
    assert all(found.values()), [name for name, said in found.items() if not said]
    assert len(found) == 14

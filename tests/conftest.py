import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import composing
import pytest
from composing import CONF
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from muwa import config
from muwa.cache.code import code_fingerprint
from muwa.miniature import data

# Few samples and few metrics: for a whole run whose figures do not matter.
SMALL = (
    "task.limits.forget_pairs=16",
    "task.limits.retain_pairs=32",
    "task.limits.eval_retain=1",
    "dataset.utility_probe=0.05",
    "dataset.utility=0.1",
    "eval=[forget,retain]",
    "runtime.progress=false",
    "runtime.threads=1",
)


# The files that take longest, the longest first.
LONGEST = (
    "faults/test_kills.py", "test_pipeline.py", "test_launchers.py", "runtime/test_distributed.py", "test_documented_commands.py",
    "test_config.py", "test_carried.py", "test_notebook.py", "test_library.py", "test_wandb_sweep.py",
    "test_multirun.py", "test_fourth_family.py", "miniature/train/test_clip.py", "report/test_page.py",
    "methods/test_laws.py", "test_startup.py",
)  # fmt: skip


def pytest_configure():
    """Configs and pages are many objects in few cycles: to look for these less often saves a thirtieth of the time."""
    gc.set_threshold(200_000)
    composing.once()


def pytest_collection_modifyitems(items):
    """Start with the longest files, so that no process ends alone with one of them (with --no-loadscope-reorder)."""
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that all processes of a session share (pytest -n 2)."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def miniature(shared, request):
    """A folder with the data of the miniature, as `dataset.root` wants it.

    Its images are drawn once for each state of the code that draws them, and kept in pytest's cache
    (`pytest --cache-clear` drops them). MUWA_TEST_MINIATURE names a folder in their place.
    """
    if "MUWA_TEST_MINIATURE" in os.environ:
        return Path(os.environ["MUWA_TEST_MINIATURE"])
    kept = request.config.cache.mkdir("miniature")
    world = kept / code_fingerprint(["muwa.miniature.data"])[:12]
    folder = shared / "miniature"
    with FileLock(f"{folder}.lock"):
        for _ in data.write(world):
            pass
        for other in kept.iterdir():
            if other.is_dir() and other != world:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        if not (folder / "world").is_symlink():
            (folder / "world").symlink_to(world)
    return folder


@pytest.fixture(scope="session")
def default_run(miniature, shared):
    """`python launch.py` with every default, from a cold cache, once a session: (its folder, what it printed).

    The cache lies in `cache/` three levels above it.
    """
    out = shared / "default"
    command = [
        sys.executable,
        str(CONF.parents[1] / "launch.py"),
        f"paths.outputs={out}",
        f"dataset.root={miniature}",
    ]
    with FileLock(f"{out}.lock"):
        if not (out / "stdout.txt").is_file():
            out.mkdir()
            done = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
            assert done.returncode == 0, done.stderr
            (out / "stdout.txt").write_text(done.stdout)
    (results,) = out.glob("runs/*/*/results.json")
    return results.parent, (out / "stdout.txt").read_text()


@pytest.fixture
def closed_tars():
    """For a training in the test's process: webdataset leaves the closing of its last file to Python."""
    yield
    gc.collect()


@pytest.fixture
def composed(tmp_path):
    """compose(*overrides) -> the config that launch.py would see, its paths in this test's folder."""
    config.register()

    def make(*overrides, hydra=False):
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            paths = [f"paths.outputs={tmp_path}", f"paths.run={tmp_path}/run", f"paths.sweep={tmp_path}"]
            return compose("config", [*paths, *overrides], return_hydra_config=hydra)

    return make

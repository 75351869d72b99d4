import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from muwa import config
from muwa.miniature import data

CONF = Path(__file__).parent.parent / "conf"


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    """A folder with the whole miniature world in it, drawn once a session, as `dataset.root` wants it."""
    root = tmp_path_factory.mktemp("miniature")
    for _ in data.write(root / "world"):
        pass
    return root


@pytest.fixture(scope="session")
def default_run(miniature, tmp_path_factory):
    """`python launch.py` with every default, from a cold cache, once a session: (its folder, what it printed).

    The cache lies in `cache/` three levels above it.
    """
    out = tmp_path_factory.mktemp("default")
    command = [sys.executable, str(CONF.parent / "launch.py"), f"paths.outputs={out}", f"dataset.root={miniature}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
    assert done.returncode == 0, done.stderr
    (results,) = out.glob("slug/*/*/results.json")
    return results.parent, done.stdout


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

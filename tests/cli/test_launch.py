"""The command `muwa` from a folder elsewhere: help, tab completion, the user's own configs, and a wheel that runs."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from conftest import SMALL

from muwa.cli.tools import TOOLS

ROOT = Path(__file__).parents[2]


def muwa(*words, cwd, **environment):
    """`python -m muwa` with this checkout, started in another folder."""
    return subprocess.run(
        [sys.executable, "-m", "muwa", *map(str, words)], capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


def tracked():
    """The files of the package that git knows."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "muwa"], capture_output=True, text=True, check=True
    )
    return [Path(line).relative_to("muwa") for line in done.stdout.splitlines()]


def test_every_file_of_the_package_is_in_the_wheel():
    """Python files are; the others are if `package-data` names them."""
    globs = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["muwa"]
    data = {path.relative_to(ROOT / "muwa") for one in globs for path in (ROOT / "muwa").glob(one)}
    others = {path for path in tracked() if path.suffix != ".py"}
    assert Path("conf/config.yaml") in others
    assert others <= data


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in tracked() if path.suffix == ".py"}
    assert [folder for folder in folders if not (ROOT / "muwa" / folder / "__init__.py").is_file()] == []


def test_a_word_that_is_no_setting_is_refused_with_what_could_be_meant(tmp_path):
    done = muwa("pach", "show", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "muwa: pach: want SETTING=VALUE, GROUP=CHOICE or a flag (--help lists them), or, as the first word, a tool: "
        f"{', '.join(TOOLS)}\n"
    )


def test_the_version_is_muwas_and_hydras_without_the_heavy_imports(tmp_path):
    """Neither torch nor Hydra is imported: the answer comes at once."""
    versions = [metadata.version(name) for name in ("muwa", "hydra-core")]
    code = "import sys; from muwa.__main__ import main; sys.argv = ['launch.py', '--version']; main();"
    code += "print(sorted({'torch', 'hydra'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    said = f"muwa {versions[0]} (Hydra {versions[1]}, Python {platform.python_version()})\n"
    assert done.stdout == f"{said}[]\n"
    assert muwa("--version", cwd=tmp_path).stdout == said


def test_tab_completes_choices_and_settings(tmp_path):
    for line, wanted in (
        ("muwa method=slug_w", "method=slug_whitened"),
        ("muwa task.iden", "task.identity="),
    ):
        done = muwa("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
        assert done.stdout.split() == [wanted], done.stderr


def test_own_configs_beside_muwas(tmp_path):
    """A choice of one's own, its module beside conf/, and a file that muwa has already, which is not read."""
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "model").mkdir()
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nseed: 77\nname: my study\n"
    )
    (tmp_path / "conf" / "model" / "clip.yaml").write_text("name: something else\n")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("_target_: my_models.load\n_partial_: true\n")
    (tmp_path / "my_models.py").write_text("def load():\n    raise ValueError('my own loader was called')\n")
    done = muwa("experiment=mine", "--cfg", "job", cwd=tmp_path)
    assert "seed: 77" in done.stdout
    assert "name: miniature" in done.stdout
    assert done.stderr == (
        "muwa: conf/model/clip.yaml: not read, for muwa has a choice of that name; give yours another name\n"
    )
    refused = muwa("method=", cwd=tmp_path)
    assert "method=: want one of concept_ablation" in refused.stderr
    assert "mine" in muwa("model=", cwd=tmp_path).stderr


def test_a_module_beside_own_configs_is_found_by_the_installed_command(tmp_path):
    """The folder of `muwa` stands first in sys.path there, not the folder where it is started."""
    (tmp_path / "conf").mkdir()
    code = "import sys; sys.path = [p for p in sys.path if p]; sys.argv = ['muwa', '--cfg', 'job']\n"
    code += "from muwa.__main__ import main\ntry:\n    main()\nfinally:\n    print('path', sys.path[-1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"path {tmp_path}", done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of an environment that has the wheel of this checkout, and the libraries of this Python."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    for path in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, source)
    for path in tracked():
        (source / "muwa" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "muwa" / path, source / "muwa" / path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", root, source], check=True)
    (wheel,) = root.glob("muwa-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    (site,) = (root / "venv" / "lib").glob("*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    python = root / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
    return root / "venv" / "bin"


def run_in(folder, *command):
    """The output of a command of the environment, started outside of the checkout; no other muwa is in reach."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_helps_composes_draws_its_data_and_runs(installed, tmp_path):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    said = run_in(tmp_path, installed / "python", "-c", "import muwa; print(muwa.__version__, muwa.__file__)")
    assert said.split()[0] == version
    assert Path(said.split()[1]).is_relative_to(installed.parent)
    assert "Usage   muwa [GROUP=CHOICE ...]" in run_in(tmp_path, installed / "muwa", "--help")
    assert "layer_search:" in run_in(tmp_path, installed / "muwa", "--cfg", "job")
    assert "usage: muwa patch" in run_in(tmp_path, installed / "muwa", "patch", "--help")
    run_in(tmp_path, installed / "muwa", *SMALL, "layer_search.max_evals=2")
    (found,) = (json.loads(path.read_text()) for path in tmp_path.rglob("results.json"))
    assert found["provenance"]["command"].startswith("muwa task.limits.forget_pairs=16 ")
    assert (tmp_path / "outputs" / "miniature" / "world" / "celeba").is_dir()
    (patch,) = tmp_path.rglob("patch.safetensors")
    shown = run_in(tmp_path, installed / "muwa", "patch", "show", patch)
    assert found["task"]["names"][0] in shown


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "vlm"])
def test_a_wheel_finds_the_other_models_too(installed, miniature, tmp_path, family):
    code = f"from muwa import config; m = config.part('model={family}')(); print(sorted(m.clips), m.source)"
    assert "miniature" in run_in(tmp_path, installed / "python", "-c", code)

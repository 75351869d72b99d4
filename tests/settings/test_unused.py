"""A setting of the command line that nothing in the run uses is found by the references of the composed config."""

import subprocess
import sys

import pytest
from conftest import CONF
from omegaconf import OmegaConf

from muwa import config
from muwa.command_line import config_folders
from muwa.settings.unused import unused

FINE_TUNING = "method=ft|ga|gaft|salun|task_arithmetic"


def found(*words):
    written = OmegaConf.to_container(config.composed(*words), resolve=False)
    return unused(words, written, config.PARTS, config_folders())


@pytest.mark.parametrize("words", [
    ["seed=1"], ["method=ft", "learning_rate=1e-4"], ["whitening.damping=0.1"], ["whitening=inputs"], ["layer_search=grid"],
    ["layer_search.max_evals=3"], ["forget_target=0.1"], ["name=x"], ["gradients=FILE"], ["stages=[eval]"],
    ["model=vlm", "questions=plain"], ["model=sd", "layer_search.max_evals=3"], ["model=sd", "classifier=miniature"],
    ["eval=full"], ["experiment=pareto"], ["+method.note=1"], ["patches=[A]"],
])  # fmt: skip
def test_what_is_used_is_not_named(words):
    assert found(*words) == {}


@pytest.mark.parametrize(("words", "named"), [
    (["learning_rate=1e-4"], {"learning_rate=1e-4": [FINE_TUNING]}),
    (["method=slug", "whitening.damping=0.1"], {"whitening.damping=0.1": ["method=slug_whitened"]}),
    (["method=ft", "layer_search=grid"],
     {"layer_search=grid": ["method=slug|slug_iterative|slug_subspace|slug_whitened"]}),
])  # fmt: skip
def test_what_is_not_used_is_named_with_who_would_use_it(words, named):
    assert found(*words) == named


def test_references_are_followed_through_the_parts_they_reach(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(
        "search: ${search}\nother: ${oc.select:b}\nlist: [x-${c.d}]\n"
    )
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "grid.yaml").write_text("steps: ${steps}\n")
    written = {
        "method": {"search": "${search}", "list": ["x-${c.d}"]},
        "search": {"steps": "${steps}"},
        "c": {"d": 1, "e": 2},
    }
    words = ["steps=3", "+search.steps=4", "b=1", "c.d=2", "c.e=3", "a=2"]
    assert unused(words, written, ["method"], [tmp_path]) == {"b=1": ["method=mine"]}


def test_a_run_says_so_before_it_computes(miniature, tmp_path):
    words = [
        "learning_rate=1e-4",
        f"dataset.root={miniature}",
        "task.identity=Nobody",
        f"paths.outputs={tmp_path}",
    ]
    done = subprocess.run(
        [sys.executable, "launch.py", *words],
        capture_output=True,
        text=True,
        cwd=CONF.parents[1],
        check=False,
    )
    notice, refusal = done.stderr.splitlines()
    assert notice == f"muwa: learning_rate=1e-4: nothing in this run uses it; it is for {FINE_TUNING}"
    assert refusal.startswith("muwa: Unknown name 'Nobody'")
    (log,) = tmp_path.rglob("launch.log")
    assert notice.removeprefix("muwa: ") in log.read_text()

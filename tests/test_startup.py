"""What a command imports before it answers. Imports of torch and its kin take seconds, so help must do without."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch", "torchvision", "open_clip", "timm", "transformers", "diffusers", "webdataset", "torchmetrics",
    "scipy", "sklearn", "matplotlib", "wandb",
}  # fmt: skip
# Runs each command (a JSON list of words) in a fork of a Python that has imported what composes a config, and no more.
# Its output goes to a file named by its place, with the packages that are imported at its end.
EACH = """
import json, os, runpy, sys
import muwa.cli.launch
for place, words in enumerate(json.load(sys.stdin)):
    if pid := os.fork():
        os.waitpid(pid, 0)
        continue
    with open(os.path.join(sys.argv[1], str(place)), "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["launch.py", *words]
    try:
        runpy.run_path("launch.py", run_name="__main__")
    finally:
        sys.stderr.flush()
        print("imported", *sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
        os._exit(0)
"""


def imported(code: str) -> tuple[set[str], str]:
    """(The packages that a fresh Python has imported at the end, everything else that it said)."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    said, _, packages = done.stdout.rpartition("imported ")
    return set(packages.split()), said + done.stderr


COMMANDS = [  # a command, and what it says
    ("--help", "Ten commands"),
    ("--cfg job", "layer_search:"),
    ("--info config", "Config"),
    ("sead=1", "sead"),
    ("method=slugg", "slugg"),
    ("stages=[unlearning]", "stages: got 'unlearning'"),
    ("layer_search.max_evals=0", "layer_search.max_evals: got 0, want at least 1"),
    ("model=sd model.dtype=fp8", "model.dtype: got 'fp8', want"),
    ("model=sd model.path=/nowhere/pipeline", "model.path: got '/nowhere/pipeline', want a path that leads to"),
    ("model.name=local-dir:nowhere", "model.name: got 'local-dir:nowhere', want a path that leads to"),
    ("eval=[mia] eval.mia.folds=1", "eval.mia.folds: got 1, want at least 2"),
    ("model=sd method=ga", "method=ga: the model is a text-to-image model"),
    ("model=vlm layer_search=grid", "layer_search=grid: the model is a vision-language model"),
    ("eval=[]", "eval: got no measure"),
    ("method=razor method.alpha=2", "method.alpha: got 2, want at most 1"),
    ("+method.alhpa=2", "unexpected keyword argument 'alhpa'"),
    ("stages=[report]", "want curate, unlearn or eval among them"),
    ("dataset.root={miniature} stages=[eval] patches=[nowhere]", "patches: nowhere: no such patch file"),
    ("dataset=laion_celeba", "no such folder"),
    ("dataset.root={miniature} task.identity=Nobody", "Unknown name 'Nobody'"),
    ("dataset.root={miniature} task=object task.object=nothing", "Unknown name 'nothing'"),
    ("dataset.root={miniature} task=style task.concept=nothing", "Unknown name 'nothing'"),
    ("dataset.root={miniature} model=sd task=prompts task.forget=nobody", "Unknown name 'nobody'"),
    ("dataset.root={miniature} model=sd task=prompts task.file=nowhere.csv", "nowhere.csv: no such prompt file"),
    ("dataset.root={miniature} dataset.celeba=nowhere", "nowhere"),
    ("dataset.root={miniature} dataset.images=nowhere", "nowhere"),
    ("dataset.root={miniature} dataset.canvas=nowhere task=style", "nowhere"),
    ("dataset.root={miniature} dataset.retain=nowhere/*.tar", "1 of 1 shards are missing"),
    ("dataset.root={miniature} dataset.shards=[]", "the pattern gives no shard"),
]  # fmt: skip


@pytest.fixture(scope="module")
def answers(miniature, tmp_path_factory):
    """The output of each of the commands."""
    folder = tmp_path_factory.mktemp("answers")
    words = [command.format(miniature=miniature).split() for command, _ in COMMANDS]
    given = json.dumps([[*some, f"paths.outputs={folder}/{place}-"] for place, some in enumerate(words)])
    subprocess.run([sys.executable, "-c", EACH, folder], input=given, text=True, cwd=ROOT, check=True)
    return [(folder / str(place)).read_text() for place in range(len(COMMANDS))]


@pytest.mark.parametrize("place", range(len(COMMANDS)), ids=[command for command, _ in COMMANDS])
@pytest.mark.whole
def test_help_and_refusals_come_before_the_heavy_imports(place, answers):
    output, _, packages = answers[place].rpartition("imported ")
    assert COMMANDS[place][1] in output
    assert "hydra" in packages.split()
    assert not set(packages.split()) & HEAVY


def test_muwa_itself_imports_nothing():
    packages, _ = imported(
        "import muwa, sys; print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    assert "muwa" in packages
    assert not packages & {*HEAVY, "hydra", "omegaconf", "numpy", "PIL"}


def test_the_pages_of_a_sweep_need_no_torch():
    """The process that launches a sweep on other processes writes them, and loads no model."""
    packages, _ = imported(
        "import muwa.report.sweep, sys; print('imported', *{name.partition('.')[0] for name in sys.modules})"
    )
    assert "matplotlib" in packages
    assert not packages & (HEAVY - {"matplotlib", "scipy"})


@pytest.mark.parametrize("module", ["cache", "miniature.data"])
def test_the_help_of_a_tool_needs_no_torch(module):
    code = f"import runpy, sys\nsys.argv = ['x', '--help']\ntry:\n    runpy.run_module('muwa.{module}', run_name='__main__')\n"
    code += "finally:\n    print('imported', *{name.partition('.')[0] for name in sys.modules})"
    packages, output = imported(code)
    assert "usage:" in output
    assert not packages & HEAVY

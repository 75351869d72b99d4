"""Laws of the house: who may import whom, what an import costs, what files may hold."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import muwa

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "muwa").rglob("*.py"))
NAMES = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in SOURCES
]


def imports(path):
    """Top-level packages that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_module_imports(name):
    module = importlib.import_module(name)
    assert module.__doc__ or hasattr(module, "__path__")  # the __init__ of a folder may be empty


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_hydra_and_wandb_stay_where_they_belong(path):
    found, name = set(imports(path)), path.relative_to(ROOT / "muwa").as_posix()
    homes = (
        "config.py",
        "command_line.py",
        "multirun.py",
        "cli/launch.py",
        "cli/callbacks.py",
        "cli/flags.py",
    )
    assert not found & {"hydra", "omegaconf"} or name in homes
    assert "wandb" not in found or name == "report/loggers.py"


FAMILIES = ("muwa/models/clip/", "muwa/models/diffusion/", "muwa/models/vlm/")
LIBRARIES = {"open_clip", "diffusers", "transformers"}
ELSEWHERE = {  # modules that need one of these libraries outside muwa/models, and why
    "muwa/data/tasks.py": {"open_clip"},  # zero-shot templates
    "muwa/data/imagenet_labels.py": {"open_clip"},  # ImageNet's class names
}


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_model_libraries_stay_in_the_families(path):
    name = path.relative_to(ROOT).as_posix()
    if name.startswith((*FAMILIES, "muwa/miniature/")):
        return
    assert set(imports(path)) & LIBRARIES <= ELSEWHERE.get(name, set())


@pytest.mark.parametrize(
    "name", ["pipeline", "run", "methods.base", "eval.measure", "layer_search.base", "gradients.base"]
)
def test_the_frame_names_no_model_family(name):
    text = (ROOT / "muwa" / f"{name.replace('.', '/')}.py").read_text()
    code = ast.unparse(without_docstrings(ast.parse(text)))
    assert not re.search(r"\b(Diffusion|Vlm|ImageGenerator|QuestionAnswering|Features)\b", code)


def without_docstrings(tree):
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


@pytest.mark.parametrize("folder", ["report", "methods", "eval", "layer_search"])
def test_the_report_imports_no_model_and_no_stage_reaches_back(folder):
    """data -> gradients -> layer search -> methods -> eval -> report: nothing imports a later stage."""
    later = {
        "report": (),
        "eval": ("report", "methods"),
        "layer_search": ("report", "methods"),
        "methods": ("report",),
    }
    others = ("models", "methods", "gradients", "layer_search") if folder == "report" else later[folder]
    for path in (ROOT / "muwa" / folder).rglob("*.py"):
        found = re.findall(r"^(?:from|import) muwa\.(\w+)", path.read_text(), re.M)
        assert not set(found) & {*others, "pipeline", "config", "library"}, path


def test_importing_the_package_loads_nothing_heavy_and_logs_nothing():
    code = (
        "import sys, logging, muwa; "
        "print(sorted({'torch', 'numpy', 'open_clip', 'hydra'} & set(sys.modules)), logging.root.handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_the_names_of_the_library_are_those_that_type_checkers_see():
    tree = ast.parse((ROOT / "muwa" / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: f"{node.module.removeprefix('muwa.')}:{alias.name}"
        for node in guarded.body
        for alias in node.names
    }
    assert seen == muwa._HOMES
    assert all(getattr(muwa, name) is not None for name in dir(muwa))
    with pytest.raises(AttributeError, match=r"no attribute 'forget'; its names: Dataset, Run, Store"):
        muwa.forget


def test_every_pin_has_a_hash_and_no_host_is_named():
    text = (ROOT / "requirements.lock").read_text()
    pins = [block for block in text.replace("\\\n", " ").splitlines() if block and not block.startswith("#")]
    assert len(pins) > 50
    assert all("==" in pin and "--hash=sha256:" in pin for pin in pins)
    assert "://" not in text

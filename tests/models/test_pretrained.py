"""No code of a folder runs: wherever a class that could run it loads, it is told not to."""

import ast
from pathlib import Path

import pytest

import muwa
from muwa.models.pretrained import check_code, check_complete, tried

ROOT = Path(muwa.__file__).parent
CAN_RUN_CODE = {
    "AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoImageProcessor", "AutoProcessor", "AutoTokenizer",
    "DiffusionPipeline",
}  # fmt: skip


def loads(tree):
    """The calls that load by one of these classes, also through `partial`: (class, its keywords)."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        for function in (call.func, *call.args[:1]):
            name, _, method = ast.unparse(function).rpartition(".")
            if method == "from_pretrained" and name in CAN_RUN_CODE:
                yield name, {one.arg: ast.unparse(one.value) for one in call.keywords}


def test_every_load_by_a_class_that_could_run_code_says_no():
    found = [one for path in sorted(ROOT.rglob("*.py")) for one in loads(ast.parse(path.read_text()))]
    assert {name for name, _ in found} >= {
        "AutoConfig",
        "AutoModel",
        "AutoProcessor",
        "AutoTokenizer",
        "DiffusionPipeline",
    }
    assert all(keywords.get("trust_remote_code") == "False" for _, keywords in found)


def test_a_call_without_it_would_be_found():
    tree = ast.parse(
        "partial(AutoModel.from_pretrained, x)\nAutoConfig.from_pretrained(x, trust_remote_code=True)"
    )
    assert list(loads(tree)) == [("AutoModel", {}), ("AutoConfig", {"trust_remote_code": "True"})]


def test_code_that_is_wanted_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"wants code of its own \(a.B, c.D\) for the model type 'seer'. muwa runs no code"
    ):
        check_code(
            "here",
            {"model_type": "seer", "auto_map": {"AutoConfig": "a.B", "AutoModel": ["c.D", None]}},
            ["clip"],
        )
    check_code("here", {"model_type": "seer"}, ["clip"])


def test_names_that_do_not_fit_are_shown():
    info = {"missing_keys": {"b", "a"}, "unexpected_keys": set(), "mismatched_keys": {("c", (1, 2), (2,))}}
    with pytest.raises(
        ValueError,
        match=r"model.path=here: .*: 2 missing: a, b; 1 of another shape: c \(1, 2\), want \(2,\)$",
    ):
        check_complete("here", info)


def test_what_a_library_raises_becomes_one_line(tmp_path):
    def read():
        raise OSError("\x1b[1mtwo\n  lines\x1b[0m")

    with pytest.raises(ValueError, match=rf"^model.path={tmp_path}: cannot be loaded \(two lines\)$"):
        tried(str(tmp_path), "config.json", read)
    with pytest.raises(
        FileNotFoundError,
        match=r"muwa/none: no such folder, .* `hf download muwa/none` .*folder with config.json",
    ):
        tried("muwa/none", "config.json", read)

"""The package of these tests is a few files in a temporary folder, `pkg`; its stage is `pkg.stage`."""

import ast
import hashlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

import muwa
from muwa.cache.code import ImportGraph, code_fingerprint, muwa_imports

ROOT = Path(muwa.__file__).parent
STAGE = '''
"""What the stage does."""

SCALE = 2.0  # of the step


class Step:
    """One step."""

    size: float = 0.5


def run(x, y=1):
    """Run the stage."""
    return SCALE * x + y
'''


def graph(folder, files):
    """The import graph of a package with these files (path -> source)."""
    for name, source in {"__init__.py": "", **files}.items():
        (folder / "pkg" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pkg" / name).write_text(source)
    return ImportGraph(folder / "pkg", "pkg")


def key(folder, files):
    return graph(folder, files).fingerprint(["pkg.stage"])


def changed(folder, files, name, source):
    """Whether the key of the stage changes when a file of the package becomes `source`."""
    return key(folder, files) != key(folder, {**files, name: source})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What the stage does."""', ""),
        ('"""One step."""', '"""One step of\n    the stage."""'),
        ('"""Run the stage."""', '"""Another text."""'),
        ("# of the step", "# another comment"),
        ("(x, y=1)", "(\n    x,\n    y=1,\n)"),
        ("SCALE * x + y", "((SCALE * x) + y)"),
        ("\n\n\n", "\n"),
    ],
)
def test_a_docstring_a_comment_and_formatting_change_no_key(tmp_path, old, new):
    assert old in STAGE
    assert not changed(tmp_path, {"stage.py": STAGE}, "stage.py", STAGE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE * x + y", "SCALE * x - y"),
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("SCALE = 2.0", "SCALE = 2"),
        ("y=1", "y=True"),
        ("size: float = 0.5", "size: float = 0.25"),
        ("return SCALE", "print('a string that is used'); return SCALE"),
    ],
)
def test_a_body_a_constant_and_a_default_change_the_key(tmp_path, old, new):
    assert old in STAGE
    assert changed(tmp_path, {"stage.py": STAGE}, "stage.py", STAGE.replace(old, new))


def test_a_string_that_is_used_changes_the_key(tmp_path):
    files = {"stage.py": 'def run():\n    """Run."""\n    return "a photo of {}"'}
    assert changed(tmp_path, files, "stage.py", files["stage.py"].replace("photo", "picture"))


@pytest.mark.parametrize("name", ["other.py", "sub/other.py", "__main__.py"])
def test_a_module_that_is_not_reached_changes_no_key(tmp_path, name):
    files = {"stage.py": "import pkg.inner", "inner.py": "x = 1", "other.py": "import pkg.stage"}
    assert not changed(tmp_path, files, name, "X = 2")


@pytest.mark.parametrize(
    "statement",
    [
        "import pkg.inner",
        "import pkg.inner as inner",
        "from pkg.inner import x",
        "from pkg import inner",
        "from . import inner",
        "from .inner import x",
        "def run():\n    from pkg.inner import x\n    return x",
        "class Stage:\n    def run(self):\n        import pkg.inner",
        "try:\n    import pkg.inner\nexcept ImportError:\n    pass",
        "if True:\n    pass\nelse:\n    import pkg.inner",
        "if not TYPE_CHECKING:\n    import pkg.inner",
        "if TYPE_CHECKING:\n    import pkg.other\nelse:\n    import pkg.inner",
        "if TYPE_CHECKING:\n    import pkg.other\nelif True:\n    import pkg.inner",
        "if False:\n    pass\nelif TYPE_CHECKING:\n    import pkg.other\nelse:\n    import pkg.inner",
        "if TYPE_CHECKING:\n    x = 1\nelif TYPE_CHECKING:\n    x = 2\nelse:\n    import pkg.inner",
        "try:\n    import pkg.inner\nfinally:\n    if TYPE_CHECKING:\n        import pkg.other",
    ],
)
def test_an_imported_module_changes_the_key(tmp_path, statement):
    files = {"stage.py": statement, "inner.py": "x = 1", "other.py": "x = 1"}
    assert graph(tmp_path, files).reached(["pkg.stage"]) == {"pkg.stage", "pkg.inner"}
    assert changed(tmp_path, files, "inner.py", "x = 2")


def test_relative_imports_start_from_the_package_of_the_module(tmp_path):
    files = {
        "stage.py": "import pkg.sub.deep",
        "sub/__init__.py": "from . import near",
        "sub/near.py": "x = 1",
        "sub/deep.py": "from ..far import x\nfrom .. import top",
        "far.py": "x = 1",
        "top.py": "x = 1",
        "sub/far.py": "x = 1",
    }
    reached = {"pkg.stage", "pkg.sub", "pkg.sub.near", "pkg.sub.deep", "pkg.far", "pkg.top"}
    assert graph(tmp_path, files).reached(["pkg.stage"]) == reached


def test_a_module_that_is_reached_through_others_changes_the_key(tmp_path):
    files = {"stage.py": "import pkg.a", "a.py": "import pkg.b", "b.py": "import pkg.c", "c.py": "x = 1"}
    assert changed(tmp_path, files, "c.py", "x = 2")


@pytest.mark.parametrize("condition", ["TYPE_CHECKING", "typing.TYPE_CHECKING"], ids=["name", "attribute"])
def test_an_import_for_type_checkers_is_not_followed_and_changes_no_key(tmp_path, condition):
    files = {"stage.py": f"if {condition}:\n    import pkg.inner", "inner.py": "x = 1"}
    assert not changed(tmp_path, files, "inner.py", "x = 2")
    assert not changed(tmp_path, files, "stage.py", f"if {condition}:\n    from pkg.inner import x")


def test_cyclic_imports_give_all_modules_one_key(tmp_path):
    files = {"stage.py": "import pkg.a", "a.py": "import pkg.b\nx = 1", "b.py": "import pkg.stage"}
    cycle = graph(tmp_path, files)
    assert {cycle.fingerprint([name]) for name in ("pkg.stage", "pkg.a", "pkg.b")} == {key(tmp_path, files)}
    assert changed(tmp_path, files, "a.py", "import pkg.b\nx = 2")


def test_the_init_of_a_package_on_the_way_counts_if_it_holds_code(tmp_path):
    files = {
        "stage.py": "import pkg.sub.inner",
        "sub/__init__.py": '"""Only a docstring."""',
        "sub/inner.py": "x = 1",
        "behind.py": "x = 1",
    }
    assert graph(tmp_path, files).reached(["pkg.stage"]) == {"pkg.stage", "pkg.sub.inner"}
    assert not changed(tmp_path, files, "sub/__init__.py", "")
    assert changed(tmp_path, files, "sub/__init__.py", "x = 1")
    behind = graph(tmp_path, {**files, "sub/__init__.py": "from pkg.behind import x"})
    assert behind.reached(["pkg.stage"]) == {"pkg.stage", "pkg.sub", "pkg.sub.inner", "pkg.behind"}


LAZY = "if TYPE_CHECKING:\n    from pkg.heavy import x as y\n\n\ndef __getattr__(name):\n    return 1"


@pytest.mark.parametrize(
    ("statement", "followed"),
    [
        ("import pkg", True),
        ("from pkg import y", True),
        ("import pkg.light", True),  # binds `pkg`, so `pkg.y` can follow
        ("import pkg.light as light", False),
        ("from pkg import light", False),
        ("from pkg.light import x", False),
    ],
)
def test_what_a_package_loads_lazily_is_reached_where_the_package_is_used(tmp_path, statement, followed):
    files = {"__init__.py": LAZY, "stage.py": statement, "heavy.py": "x = 1", "light.py": "x = 1"}
    assert ("pkg.heavy" in graph(tmp_path, files).reached(["pkg.stage"])) is followed


def test_the_key_is_the_digest_of_the_sorted_names_and_the_digests_of_their_code(tmp_path):
    def sha256(*parts):  # each part after its length in 8 bytes
        raw = [len(part).to_bytes(8, "little") + part.encode() for part in parts]
        return hashlib.sha256(b"".join(raw)).hexdigest()

    names = [f"pkg.{letter}" for letter in "abcdefghij"]
    some = graph(tmp_path, {f"{letter}.py": '"""Doc."""\nx = 1  # one' for letter in "jihgfedcba"})
    code = sha256(ast.dump(ast.parse("x = 1")))
    assert some.fingerprint(reversed(names)) == sha256(*(part for name in names for part in (name, code)))


def test_order_and_repetition_of_the_given_modules_do_not_matter(tmp_path):
    some = graph(tmp_path, {"a.py": "x = 1", "b.py": "x = 2"})
    assert some.fingerprint(["pkg.a", "pkg.b"]) == some.fingerprint(iter(["pkg.b", "pkg.a", "pkg.b"]))
    assert some.fingerprint(["pkg.a"]) != some.fingerprint(["pkg.b"])


def test_the_folder_of_the_package_is_not_in_the_key(tmp_path):
    assert key(tmp_path / "here", {"stage.py": STAGE}) == key(tmp_path / "there", {"stage.py": STAGE})


def test_a_file_that_is_edited_during_a_run_changes_no_key_of_the_run(tmp_path):
    some = graph(tmp_path, {"stage.py": "x = 1"})
    (tmp_path / "pkg" / "stage.py").write_text("x = 2")
    assert some.fingerprint(["pkg.stage"]) == key(tmp_path, {"stage.py": "x = 1"})


def outside(folder, source):
    """The key of a module outside the package that imports a module of the package."""
    folder.mkdir(exist_ok=True)
    (folder / "users_own_metric.py").write_text(source)
    return graph(folder, {"inner.py": "x = 1", "other.py": "x = 1"})


@pytest.mark.parametrize("imported", [False, True], ids=["found on the path", "imported"])
def test_a_module_outside_counts_with_its_source_and_what_it_reaches(tmp_path, monkeypatch, imported):
    monkeypatch.syspath_prepend(str(tmp_path))
    source = '"""Doc."""\nimport os\nimport pkg.inner\nx = 1'
    some = outside(tmp_path, source)
    if imported:
        module = ModuleType("users_own_metric")
        module.__file__ = str(tmp_path / "users_own_metric.py")
        monkeypatch.setitem(sys.modules, "users_own_metric", module)
    assert some.reached(["users_own_metric"]) == {"users_own_metric", "pkg.inner"}
    before = some.fingerprint(["users_own_metric"])
    same = outside(tmp_path, source.replace("Doc", "Another text"))
    assert same.fingerprint(["users_own_metric"]) == before
    assert outside(tmp_path, source.replace("x = 1", "x = 2")).fingerprint(["users_own_metric"]) != before
    (tmp_path / "pkg" / "inner.py").write_text("x = 2")
    assert ImportGraph(tmp_path / "pkg", "pkg").fingerprint(["users_own_metric"]) != before


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("pkg.missing", "None"),
        ("no_such_package.no_such_module", "None"),
        ("typed_at_the_prompt", "None"),
        ("compiled", ".*/compiled.so"),
        ("removed", "/nowhere/removed.py"),
    ],
)
def test_a_module_without_source_is_refused(tmp_path, monkeypatch, name, file):
    for loaded in ("typed_at_the_prompt", "compiled", "removed"):
        monkeypatch.setitem(sys.modules, loaded, ModuleType(loaded))
    (tmp_path / "compiled.so").write_bytes(b"\x7fELF")
    sys.modules["compiled"].__file__ = str(tmp_path / "compiled.so")
    sys.modules["removed"].__file__ = "/nowhere/removed.py"
    with pytest.raises(TypeError, match=rf"module {name}: its source file is {file}, want a .py file; move"):
        graph(tmp_path, {}).fingerprint([name])


def test_what_the_mean_gradient_of_muwa_reaches():
    reached = muwa_imports().reached(["muwa.gradients.mean"])
    assert {"muwa.gradients.mean", "muwa.gradients.losses", "muwa.fingerprint"} <= reached
    assert not reached & {"muwa.report.page", "muwa.pipeline", "muwa.config"}
    others = ("muwa.methods", "muwa.layer_search", "muwa.eval", "muwa.report")
    assert not [name for name in reached if name.startswith(others)]


def test_this_test_file_reaches_the_cache_of_muwa():
    assert code_fingerprint([__name__]) == code_fingerprint([__name__, "muwa.cache.code"])
    assert code_fingerprint([__name__]) != code_fingerprint(["muwa.cache.code"])


def test_no_module_that_a_stage_reaches_imports_by_a_computed_name():
    """The graph cannot see such imports. muwa/__init__.py alone makes them; the next test is about those."""
    folders = ("data", "eval", "gradients", "layer_search", "methods", "models")
    paths = [path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py")]
    commands = ("__init__", "__main__", "export")
    names = [path.with_suffix("").parts for path in paths if path.stem not in commands]
    stages = [".".join(("muwa", *name)) for name in names]
    reached = muwa_imports().reached(stages) - {"muwa"}
    assert len(reached) > 100
    banned = {"import_module", "__import__", "instantiate", "exec", "eval"}
    for name in reached:
        path = ROOT.joinpath(*name.split(".")[1:])
        tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {getattr(call, "id", None) for call in calls} | {
            call.attr
            for call in calls
            if isinstance(call, ast.Attribute) and call.attr != "eval"  # `module.eval()`
        }
        assert not called & banned, name


def test_the_lazy_names_of_muwa_decide_nothing_for_a_module_of_muwa():
    assert "muwa" not in muwa_imports().reached(["muwa.gradients.mean"])


def test_the_lazy_names_of_muwa_are_reached_where_muwa_itself_is_used():
    homes = {f"muwa.{home.partition(':')[0]}" for home in muwa._HOMES.values()}
    assert homes <= muwa_imports().reached(["muwa"])

"""docs/notebook.ipynb: every cell runs, none shows a picture, and none was committed with its output."""

import json
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
# Runs the cells in turn as Jupyter does: the last expression of a cell is shown, as HTML if it can. One JSON line a cell.
READER = """
import ast, io, json
from contextlib import redirect_stdout
names = {"__name__": "__main__"}
for source in json.load(open("cells.json")):
    tree, shown = ast.parse(source), {}
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(last, "cell", "eval"), names)
            shown = {"text": repr(value)}
            if hasattr(value, "_repr_html_"):
                shown["html"] = value._repr_html_()
    print(json.dumps({**shown, "printed": printed.getvalue()}))
"""


def cells(kind):
    return ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == kind]


def test_it_is_of_the_format_that_jupyter_reads():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(set(cell) >= {"cell_type", "id", "metadata", "source"} for cell in NOTEBOOK["cells"])
    assert cells("markdown")[0].startswith("# ")


def test_it_was_committed_without_outputs():
    found = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in found)


@pytest.fixture(scope="module")
def outputs(miniature, default_run, tmp_path_factory):
    """What each code cell shows. It computes what the default run of the command line computed: it reads its cache."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "miniature").symlink_to(miniature)
    (folder / "outputs" / "cache").symlink_to(default_run[0].parents[2] / "cache")
    (folder / "outputs" / "runs").symlink_to(default_run[0].parents[1])
    (folder / "reader.py").write_text(READER)
    (folder / "cells.json").write_text(json.dumps(cells("code")))
    done = forked.run(str(folder / "reader.py"), cwd=folder)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.whole
def test_every_cell_runs_and_shows_little(outputs):
    assert len(outputs) == len(cells("code"))
    for one in outputs:
        assert len(one["text"]) < 3000
        assert "\\x" not in one["text"]
        assert "<img" not in one.get("html", "")
        assert one["printed"] == ""


@pytest.mark.whole
def test_the_comparison_and_the_run_are_shown_as_tables(outputs):
    (compared,) = [
        one for one in outputs if one["text"].startswith("metric") or "forget/top1" in one["text"][:400]
    ][:1]
    assert '<td style="text-align:left">forget/top1</td>' in compared["html"]
    assert "100.0 %" in compared["text"]
    assert outputs[-1]["text"].startswith("Forgetting Kael Lindqvar; edited: ")
    assert "forgotten" in outputs[-1]["text"]  # the verdict of the run

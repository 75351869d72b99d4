"""Every bench checks its arguments first and ends with one line on a mistake, on a failed command and on Ctrl-C."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from bench import entry, layer_scores, same, unchanged

ROOT = Path(__file__).parents[2]
BENCHES = [path for path in sorted((ROOT / "bench").glob("*.py")) if "__main__" in path.read_text()]


def ended(main, capsys):
    """(Exit code, stderr) of a bench."""
    with pytest.raises(SystemExit) as end:
        entry.run("bench.x", main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_every_bench_is_run_that_way(path):
    assert path.read_text().endswith(
        f'if __name__ == "__main__":\n    entry.run("bench.{path.stem}", main)\n'
    )


def test_there_are_benches():
    assert len(BENCHES) > 15


def test_a_mistake_is_one_line(capsys):
    def wrong():
        raise ValueError("a: got 1, want 2")

    assert ended(wrong, capsys) == (2, "bench.x: a: got 1, want 2\n")
    assert ended(lambda: Path("/nowhere/a").read_text() and None, capsys) == (
        2,
        "bench.x: /nowhere/a: No such file or directory\n",
    )


def test_a_command_that_fails_is_named_with_its_last_line(capsys):
    code = "import sys; sys.exit('first\\nwhy it failed')"
    found = ended(
        lambda: (
            subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) and 0
        ),
        capsys,
    )
    assert found[0] == 2
    assert found[1].startswith(f"bench.x: exit code 1 of: {sys.executable} -c ")
    assert found[1].endswith("  why it failed\n")
    assert len(found[1].splitlines()) == 1 + code.count("\n")


def test_ctrl_c_is_one_line_and_the_exit_code_is_that_of_main(capsys):
    def stopped():
        raise KeyboardInterrupt

    code, said = ended(stopped, capsys)
    assert (code, said.splitlines()[0][:29]) == (130, "bench.x: stopped by Ctrl-C. W")
    assert ended(lambda: 1, capsys) == (1, "")
    assert ended(lambda: None, capsys) == (None, "")


@pytest.mark.parametrize(("kind", "text", "said"), [
    (entry.count, "0", "got 0, want a whole number of at least 1"),
    (entry.count, "1.5", "got 1.5, want a whole number of at least 1"),
    (entry.positive, "-1", "got -1, want a number above 0"),
    (entry.positive, "nan", "got nan, want a number above 0"),
    (entry.positive, "x", "got x, want a number above 0"),
    (entry.device, "cuda:99", "cuda:99: not usable here"),
    (entry.checkout, "/nowhere", "/nowhere: no launch.py in it, want a checkout of muwa"),
])  # fmt: skip
def test_wrong_arguments_are_refused(kind, text, said):
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        kind(text)


def test_right_arguments_are_taken():
    found = (entry.count("7"), entry.positive("0.5"), entry.device("cpu"), entry.checkout(str(ROOT)))
    assert found == (7, 0.5, "cpu", ROOT)


def test_the_folder_of_a_run_is_not_its_outputs(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(
        ValueError, match="the folder of a run; want its paths.outputs, which holds run and cache"
    ):
        same.run_in(tmp_path)


def test_nothing_recorded_is_not_the_same(tmp_path):
    with pytest.raises(ValueError, match="nothing recorded in it; want a folder that `record` wrote"):
        unchanged.compare(tmp_path, tmp_path)


def test_runs_that_searched_one_layer_have_no_rank(tmp_path):
    record = {"folder": tmp_path, "trace": [{"layer": "a", "feasible": False}],
              "search": [{"before": {"kept": 1.0}}],
              "scores": [{"layer": "a", "tower": "vision", "gain": 1.0, "alignment": 0.5}]}  # fmt: skip
    with pytest.raises(ValueError, match="1 layers of the vision tower were searched, want two or more"):
        layer_scores.measured(record, "gain", ("vision",))


def test_runs_without_alignments_are_not_ranked_by_them(tmp_path):
    layers = [{"layer": name, "tower": "vision", "gain": 1.0, "alignment": None} for name in "ab"]
    record = {"folder": tmp_path, "trace": [{"layer": name, "feasible": False} for name in "ab"],
              "search": [{"before": {"kept": 1.0}}], "scores": layers}  # fmt: skip
    with pytest.raises(
        ValueError, match="its layers have no alignment, want runs with layer_search.candidates=null"
    ):
        layer_scores.measured(record, "alignment", ("vision",))

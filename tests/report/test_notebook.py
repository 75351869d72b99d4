"""What a notebook shows of results."""

import re
from dataclasses import replace

import pytest
from report.finished import report
from report.test_sweep import run

import muwa
from muwa.report.notebook import compare, read_run, read_sweep
from muwa.report.page import write_report
from muwa.types.metric import Metric


def cells(html):
    """The cells of an HTML table, row by row."""
    return [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.S)
    ]


def test_before_beside_after_as_html_and_as_text(tmp_path):
    one = report(tmp_path)
    shown = compare(one.before, one.after)
    rows = cells(shown._repr_html_())
    assert rows[0][:6] == ["metric", "before", "after", "change", "95 % interval after", "n"]
    assert rows[1][:6] == ["forget/top1", "100.0 %", "0.0 %", "-100.0", "0.0 to 70.0", "2"]
    assert re.search(r"retain/top1 +The other names +90.0 % +88.0 % +60.0 to 100.0 +-2.0 ", repr(shown))
    assert one._repr_html_() == shown._repr_html_()


def test_two_lists_of_metrics_are_not_compared(tmp_path):
    one = report(tmp_path)
    with pytest.raises(
        ValueError, match=r"^forget/mia: measured on one model only; evaluate both with one list"
    ):
        compare({**one.before, "forget/mia": Metric(0.5, 9)}, one.after)


def test_text_of_others_is_escaped(tmp_path):
    one = report(tmp_path)
    name = "<script>alert(1)</script>"
    html = compare({name: Metric(0.5, 1)}, {name: Metric(0.5, 1)})._repr_html_()
    assert "<script>" not in html
    assert one.task.names


def test_a_finished_run_is_read_back_as_it_was_measured(tmp_path):
    one = report(tmp_path)
    write_report(one, show_forget=False)
    back = read_run(tmp_path)
    assert back.comparison.after["retain/top1"] == one.after["retain/top1"]
    assert back.comparison.before == dict(one.before)
    html = back._repr_html_()
    assert f"Forgetting {one.task.names[0]}; edited: visual.proj" in html
    assert str(tmp_path / "report.html") in html
    assert "<img" not in html
    assert repr(back).startswith(f"Forgetting {one.task.names[0]}; edited: visual.proj\n")
    with pytest.raises(FileNotFoundError, match="no results.json in it; want the folder of a run"):
        read_run(tmp_path / "elsewhere")


def test_a_sweep_has_a_row_for_each_run(tmp_path):
    run(tmp_path, 0, ["seed=0"], top1=0.0, retain=(0.9, 0.88))
    run(tmp_path, 1, ["seed=1"], top1=0.5, top5=0.5, retain=(0.9, 0.84))
    sweep = read_sweep(tmp_path)
    assert [row["after forget/top1"] for row in sweep.rows] == [0.0, 0.5]
    rows = cells(sweep._repr_html_())
    assert rows[0] == ["run", "seed", "after forget/top1", "after forget/top5", "change retain/top1",
                       "objective (lower is better)", "layer", "status"]  # fmt: skip
    assert rows[2] == ["1", "1", "50.0 %", "50.0 %", "-6.0", "0.5000", "visual.proj", "done"]
    assert "2 of 2 runs are done" in sweep._repr_html_()
    assert repr(sweep).splitlines()[-1] == f"{tmp_path}/sweep.csv"
    with pytest.raises(FileNotFoundError, match="no run in it; want the folder of a multirun"):
        read_sweep(tmp_path / "0")


def test_the_library_has_them(tmp_path):
    one = report(tmp_path)
    assert repr(muwa.compare(one.before, one.after)) == repr(compare(one.before, replace(one).after))

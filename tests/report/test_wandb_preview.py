"""The page of what W&B gets, from logs that wandb itself wrote and reads."""

import re
import time
from html import unescape

import pytest
import tiny
from report.finished import report
from report.offline import settled_records

from muwa.report import wandb_preview
from muwa.report.loggers import Wandb

pytest.importorskip("wandb", minversion="0.31")


def logged(folder, *, kept, method="slug"):
    """An offline run with two evaluations, metrics, a table, a figure and a patch."""
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "trace.png").write_bytes(tiny.png(0))
    (folder / "patch.safetensors").write_bytes(b"abc")
    logger = Wandb(
        project="p",
        group="my group",
        name=None,
        job_type=None,
        mode="offline",
        folder=str(folder),
        tags=["mine"],
    )
    logger.log(
        "config", {"method": {"_target_": f"muwa.methods.{method}.A"}, "stages": ["unlearn"], "seed": 7}
    )
    logger.log("task", {"kind": "identity", "names": ["Ada Fox"], "model": "<b>tiny</b>"})
    for step in (0.5, 1.0):
        logger.log("evaluation", {"concept": "Ada Fox", "layer": "visual.proj", "step": step, "kept": kept})
    logger.log("metrics", {"when": "before", "retain/top1": 1.0})
    logger.log("metrics", {"when": "after", "retain/top1": kept})
    logger.close(report(folder))
    settled_records(folder)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The folder of a sweep of two runs; the second has two attempts."""
    folder = tmp_path_factory.mktemp("sweep")
    logged(folder / "0", kept=0.25)
    logged(folder / "1", kept=0.75, method="ga")
    time.sleep(1.1)  # wandb names the folder of an attempt by the second
    again = Wandb(
        project="p", group=None, name=None, job_type=None, mode="offline", folder=str(folder / "1"), tags=[]
    )
    again.log("metrics", {"when": "after", "forget/top1": 0.125})
    again.close(None)
    settled_records(folder / "1")
    return folder


@pytest.fixture(scope="module")
def runs(sweep):
    return wandb_preview.read_runs(sweep)


@pytest.mark.whole
def test_attempts_are_one_run_and_say_what_wandb_would_show(runs):
    first, second = runs
    assert first.name == "slug · Ada Fox · vision visual.proj"
    tags = "mine, slug, identity, <b>tiny</b>, vision"
    about = ("state", "group", "job type", "tags")
    assert [first.about[key] for key in about] == ["finished", "my group", "unlearn", tags]
    assert first.points["search/step"] == [(1, 0.5), (2, 1.0)]  # over search/evaluation
    assert "search/evaluation" not in first.points  # hidden
    assert [y for _, y in first.points["change/retain/top1"]] == [-0.75]
    assert first.config["seed"] == 7
    assert first.summary["verdict"] == "not shown"
    assert not [key for key in first.summary if key.startswith("search/")]
    assert first.files["patch.safetensors"] == 3
    assert [y for _, y in second.points["after/forget/top1"]] == [0.125]  # of the second attempt
    assert second.name == "ga · Ada Fox · vision visual.proj"  # of the first: W&B keeps it
    assert second.points["search/step"] == first.points["search/step"]  # of the first


@pytest.mark.whole
def test_a_command_writes_the_page_of_a_run(sweep, capsys):
    assert wandb_preview.main([str(sweep / "0")]) == 0
    assert capsys.readouterr().out == f"{sweep}/0/wandb.html\n"
    assert "<h1>What W&amp;B gets of 0</h1>" in (sweep / "0" / "wandb.html").read_text()


@pytest.mark.whole
def test_the_page_has_charts_tables_figures_and_files(runs):
    page = wandb_preview.page("my sweep", runs)
    headings = [unescape(one) for one in re.findall(r"<h2>(.*?)</h2>", page)]
    assert headings == [
        "Runs", "after", "before", "change", "search", "Table search", "Table metrics", "figures/trace", "Summary",
        "Config", "Files",
    ]  # fmt: skip
    labels = [unescape(one) for one in re.findall(r'aria-label="(.*?)"', page)]
    assert (
        "change/retain/top1. slug · Ada Fox · vision visual.proj: -0.75; ga · Ada Fox · vision visual.proj: -0.25"
        in labels
    )
    assert page.count("data:image/png;base64,") == 2
    assert "<code>patch.safetensors</code> 3 bytes" in page
    assert "<b>tiny</b>" not in page  # texts are escaped
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)  # nothing from outside


def test_numbers_with_a_dot_are_charts_and_files_elsewhere_are_left_out(tmp_path):
    run, inside = wandb_preview.Logged(), "media/a.png"
    item = {"_step": 3, "after/p0.5": 1.0, "a.path": inside, "a.width": 7, "b.path": "../../b.png", "b.size": 1,
            "after/true": True}  # fmt: skip
    wandb_preview.add_point(run, item, tmp_path)
    assert run.points == {"after/p0.5": [(3, 1.0)]}
    assert run.media == {"a": tmp_path / "files" / inside}


def test_without_wandb_it_says_so(tmp_path, capsys, monkeypatch):
    (tmp_path / "wandb" / "offline-run-1-x").mkdir(parents=True)
    monkeypatch.setattr(wandb_preview.importlib.util, "find_spec", lambda name: None)
    assert wandb_preview.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("it alone reads its logs: pip install 'wandb>=0.31'\n")


def test_keys_that_differ_stand_before_the_others():
    sides = wandb_preview.side_by_side(
        [{"a": 1, "z": {"b": 2}}, {"a": 1, "z": {"b": 3.14159}, "objective": None}]
    )
    assert sides == [("objective", ["", ""]), ("z.b", ["2", "3.142"]), ("a", ["1", "1"])]


def test_a_folder_without_a_log_is_refused_with_one_line(tmp_path, capsys):
    assert wandb_preview.main([str(tmp_path)]) == 2
    said = f"muwa.report.wandb_preview: {tmp_path}: no wandb/offline-run-* in it; want a run or a sweep with "
    assert capsys.readouterr().err == f"{said}logger=[jsonl,wandb]\n"
    assert not (tmp_path / "wandb.html").exists()


def test_a_log_that_wandb_cannot_read_is_refused(tmp_path, capsys):
    (tmp_path / "wandb" / "offline-run-1-x").mkdir(parents=True)
    assert wandb_preview.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"muwa.report.wandb_preview: {tmp_path}/wandb/offline-run-1-x: wandb cannot read it: "
    )

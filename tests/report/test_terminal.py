"""What a run and a sweep print at their end."""

import logging
import re
from dataclasses import replace

import pytest
from report.finished import ATTACK, FIRST_GUESS, UA, report
from report.test_sweep import run

from muwa.report.terminal import print_outcome, print_sweep
from muwa.types.metric import Metric
from muwa.types.report import PATCH


def rows(text):
    """The cells of a printed table, by the first cell of each row: columns are two or more spaces apart."""
    cells = [re.split(r" {2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 3}


def test_a_run_ends_with_one_table_the_layer_and_the_paths(tmp_path, capsys):
    folder = tmp_path / ("a folder with a long name " * 8)
    folder.mkdir()
    for name in ("report.html", PATCH):
        (folder / name).touch()
    print_outcome(report(folder))
    said = capsys.readouterr().out
    assert rows(said) == {
        "metric": ["before", "after", "interval", "change", "interval", "n", "verdict"],
        "forget/top1": [
            "the model's first guess",
            "100.0 %",
            "0.0 %",
            "0.0 to 70.0",
            "-100.0",
            "-100.0 to -1.0",
            "2",
            "not shown",
        ],
        "retain/top1": [
            "The other names",
            "90.0 %",
            "88.0 %",
            "60.0 to 100.0",
            "-2.0",
            "-31.7 to +30.3",
            "7",
            "not shown",
        ],
    }
    lines = said.splitlines()
    assert lines[0].startswith(
        "Neither that it is forgotten nor that the rest is kept is shown. Ada Fox is no longer"
    )
    assert lines[0].endswith("2 held-out images (95 % interval 0 to 70 %); too few to show less than 50 %.")
    assert "edited  visual.proj (vision), by 20.0 % of its norm, for " in said
    assert lines[-2:] == [f"report  {folder}/report.html", f"patch   {folder}/{PATCH}"]


def test_a_row_that_counts_where_the_target_is_not_shown_says_so(tmp_path, capsys):
    """Above "0 % → 100 %" the sentence says "no longer generated when asked for: 100 → 0 %"."""
    one = report(tmp_path)
    before, after = (
        {"forget/ua": Metric(0.0, 20, 0.0, 0.16, UA)},
        {"forget/ua": Metric(1.0, 20, 0.84, 1.0, UA)},
    )
    print_outcome(replace(one, before=before, after=after))
    said = capsys.readouterr().out
    assert "is no longer generated when asked for: 100 → 0 %" in said
    assert rows(said)["forget/ua"][:3] == ["not generated when asked for", "0.0 %", "100.0 %"]


def test_the_card_is_named_where_there_is_one_and_metrics_without_a_verdict_are_counted(tmp_path, capsys):
    one = report(tmp_path)
    for name in ("card.md", PATCH):
        (tmp_path / name).touch()
    cosine = {"forget/cosine": Metric(0.1, 2)}
    print_outcome(replace(one, before={**one.before, **cosine}, after={**one.after, **cosine}))
    said = capsys.readouterr().out
    assert "1 more metric; what each of them means: report.html" in said
    assert "forget/cosine" not in said
    assert said.splitlines()[-2:] == [f"card    {tmp_path}/card.md", f"patch   {tmp_path}/{PATCH}"]


@pytest.mark.parametrize(("reading", "before", "after", "word"), [
    (FIRST_GUESS, 1.0, Metric(0.0, 8, 0.0, 0.3), "forgotten"),
    (FIRST_GUESS, 1.0, Metric(0.0, 2, 0.0, 0.7), "not shown"),
    (FIRST_GUESS, 1.0, Metric(0.5, 8, 0.2, 0.8), "still recognised"),
    (ATTACK, 1.0, Metric(0.05, 20, 0.0, 0.2), "withstood"),
    (ATTACK, 1.0, Metric(0.1, 20, 0.0, 0.3), "not shown"),
    (ATTACK, 1.0, Metric(0.9, 20, 0.7, 1.0), "brought back"),
])  # fmt: skip
def test_the_verdict_of_a_row(tmp_path, capsys, reading, before, after, word):
    name = "some/metric"
    after = replace(after, reading=reading)
    print_outcome(
        replace(
            report(tmp_path), before={name: Metric(before, after.n, reading=reading)}, after={name: after}
        )
    )
    assert rows(capsys.readouterr().out)[name][-1] == word


def test_the_log_of_the_run_has_the_table_too(tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, logger="muwa")
    print_outcome(report(tmp_path))
    (record,) = caplog.records
    assert capsys.readouterr().out in record.getMessage()


def test_a_terminal_folds_the_table_and_leaves_paths_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    (tmp_path / PATCH).touch()
    print_outcome(report(tmp_path))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[-1] == f"patch   {tmp_path}/{PATCH}"
    assert max(len(line) for line in lines if "%" in line and "on 2 held-out" not in line) <= 70


def test_a_sweep_ends_with_a_row_for_each_run_and_its_page(tmp_path, capsys):
    run(tmp_path, 0, ["seed=0", "method=ga"], top1=0.0, retain=(0.9, 0.88))
    run(tmp_path, 1, ["seed=1", "method=ga"], top1=0.5, top5=0.5, retain=(0.9, 0.84))
    run(tmp_path, 2, ["seed=2", "method=ga"])
    print_sweep(tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("2 of 3 runs are done, 1 unfinished. 1 of 2 forgot")
    found = rows(said)
    assert found["run"][:2] == ["seed", "after forget/top1"]
    assert found["0"] == ["0", "0.0 %", "0.0 %", "-2.0", "0.0000", "visual.proj", "done"]
    assert found["1"] == ["1", "50.0 %", "50.0 %", "-6.0", "0.5000", "visual.proj", "done"]
    assert re.search(r"^ *2 +2 +unfinished$", said, re.M)
    assert said.splitlines()[-2:] == [f"{tmp_path}/sweep.html", f"{tmp_path}/sweep.csv"]


def test_rates_of_earlier_requests_say_so(tmp_path, capsys):
    """Two rows in the words of one rate: whose it is stands before it."""
    one, earlier = report(tmp_path), replace(FIRST_GUESS, role="earlier")
    for reading, says in ((earlier, ""), (replace(earlier, better="higher"), "not ")):
        rates = {
            "forget/top1": Metric(0.0, 8, reading=FIRST_GUESS),
            "earlier/top1": Metric(0.0, 8, reading=reading),
        }
        print_outcome(replace(one, before=rates, after=rates))
        found = rows(capsys.readouterr().out)
        assert found["forget/top1"][0] == "the model's first guess"
        assert found["earlier/top1"][0] == f"earlier requests: {says}the model's first guess"


@pytest.mark.parametrize(("width", "missing"), [(80, 3), (100, 1), (118, 0), (160, 0)])
def test_a_sweep_on_a_terminal_leaves_columns_out_and_cuts_no_name(
    tmp_path, capsys, monkeypatch, width, missing
):
    settings = [("Lior_Garrowby", "slug_whitened"), ("Imre_Marchetal", "slug")]
    for number, (name, method) in enumerate(settings):
        run(tmp_path, number, [f"task.identity={name}", f"method={method}"], top1=0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    print_sweep(tmp_path)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    words = said.split()
    assert {"task.identity", "method", "status", "forget/top1", "objective", *settings[0], *settings[1]} <= {
        *words
    }
    left_out = f"{missing} column{'s do' if missing > 1 else ' does'} not fit here; sweep.html has all"
    assert (left_out in said) == bool(missing)
    assert ("visual.proj" in words) == (not missing)
    table = said[said.index(" run ") : said.index("sweep.html")].splitlines()
    assert max(map(len, table)) <= width


def test_a_sweep_that_was_logged_offline_ends_with_how_to_send_it(tmp_path, capsys):
    sweep = tmp_path / "my sweep"
    for number in (0, 1):
        run(sweep, number, [f"seed={number}"], top1=0.0, retain=(0.9, 0.88))
        (sweep / str(number) / "wandb" / "offline-run-1-a").mkdir(parents=True)
    print_sweep(sweep)
    line = f"W&B was logged offline; to send it: wandb sync '{sweep}'/*/wandb/offline-run-*"
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_a_folder_without_runs_prints_nothing(tmp_path, capsys):
    print_sweep(tmp_path)
    print_sweep(tmp_path / "nowhere")
    assert capsys.readouterr().out == ""

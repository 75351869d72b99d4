import csv
import json
from dataclasses import replace

from report.finished import FIRST_FIVE, FIRST_GUESS, OTHERS, UA

from muwa.report import sweep
from muwa.report.status import begin_sweep, end_run, planned_runs
from muwa.report.sweep import headline, read_runs, row_of, summary, write_sweep
from muwa.report.terminal import as_text, sweep_parts
from muwa.types.metric import Metric
from muwa.types.verdict import word


def run(folder, number, overrides, top1=None, top5=0.0, retain=(0.9, 0.88)):
    """A run's folder as muwa leaves it: its overrides and, when it finished, its results."""
    here = folder / str(number)
    (here / ".hydra").mkdir(parents=True)
    (here / ".hydra" / "overrides.yaml").write_text("".join(f"- {one}\n" for one in overrides))
    if top1 is None:
        return
    readings = {"forget/top1": FIRST_GUESS, "forget/top5": FIRST_FIVE, "retain/top1": OTHERS}
    write(here, readings, before=(1.0, 1.0, retain[0]), after=(top1, top5, retain[1]))


def write(here, readings, before, after):
    """The results.json of a run with these metrics."""
    metrics = {
        when: {
            name: Metric(value, 8, reading=readings[name]).record()
            for name, value in zip(readings, each, strict=True)
        }
        for when, each in (("before", before), ("after", after))
    }
    found = {
        "metrics": metrics,
        "task": {"kind": "identity", "names": ["A B"]},
        "objective": after[0],
        "seconds": {"total": 3.0},
        "edit": {"tower": "vision", "layer": "visual.proj", "step": 2.0, "relative_norm": 0.1},
        "search": [{"feasible": True}],
        "provenance": {
            "method": "slug",
            "model": {"source": "tiny", "fingerprint": "m"},
            "data": {"fingerprint": "d"},
        },
        "cost": {},
    }
    (here / "results.json").write_text(json.dumps(found))


def test_one_row_a_run_in_order_with_what_was_swept(tmp_path):
    for i, seed in enumerate(range(11)):
        run(tmp_path, i, [f"seed={seed}", "model=clip"], top1=0.0)
    rows = list(map(row_of, read_runs(tmp_path)))
    assert [row["run"] for row in rows] == [str(i) for i in range(11)]
    assert [row["seed"] for row in rows] == [str(i) for i in range(11)]
    assert "model" not in rows[0]


def test_changes_means_and_failures_worked_by_hand(tmp_path):
    run(tmp_path, 0, ["seed=0"], top1=0.0, retain=(0.9, 0.88))
    run(tmp_path, 1, ["seed=1"], top1=0.5, top5=0.5, retain=(0.9, 0.84))
    run(tmp_path, 2, ["seed=2"])
    end_run(tmp_path / "2", "failed")
    write_sweep(tmp_path)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done", "done", "failed"]
    assert [round(float(row["change retain/top1"]), 6) for row in rows[:2]] == [-2, -6]
    text = headline(read_runs(tmp_path), None)
    assert text == (
        "2 of 3 runs are done, 1 failed. 1 of 2 forgot (forget/top1 = 0, forget/top5 = 0). "
        "Mean change of retain/top1: -4.00 ± 2.83 points."
    )
    page = (tmp_path / "sweep.html").read_text()
    assert "-4.00 ± 2.83" in page
    assert '<svg viewBox="0 0 518.4 302.4"' in page  # 7.2 x 4.2 inches
    assert not list(tmp_path.glob("*.draft"))


def test_methods_and_their_settings_are_not_averaged(tmp_path):
    run(tmp_path / "people", 0, ["task.identity=A", "seed=0"], top1=0.0)
    run(tmp_path / "people", 1, ["task.identity=B", "seed=1"], top1=0.0)
    runs = read_runs(tmp_path / "people")
    assert "Mean change of retain/top1: -2.00" in headline(runs, None)
    assert summary(runs)["after forget/top1"] == "0.00 ± 0.00 %"
    for key, values in (
        ("method", ("slug", "ga")),
        ("method.k", ("1", "2")),
        ("learning_rate", ("1e-4", "1e-5")),
    ):
        folder = tmp_path / key
        for number, value in enumerate(values):
            run(folder, number, ["task.identity=A", f"{key}={value}"], top1=0.0)
            (folder / str(number) / ".hydra" / "config.yaml").write_text("rate: ${learning_rate}\n")
        runs = read_runs(folder)
        assert (
            headline(runs, None) == "2 of 2 runs are done. 2 of 2 forgot (forget/top1 = 0, forget/top5 = 0)."
        )
        assert summary(runs) == {}


def test_a_run_that_gave_no_word_yet_has_not_failed(tmp_path):
    for number in range(3):
        run(tmp_path, number, [f"seed={number}"])
    end_run(tmp_path / "1", "failed")
    end_run(tmp_path / "2", "done")  # stages=[curate] leaves no results
    assert [run.status for run in read_runs(tmp_path)] == ["unfinished", "failed", "done"]
    assert headline(read_runs(tmp_path), None) == "1 of 3 runs are done, 1 failed, 1 unfinished."


def test_runs_that_never_started_count_too(tmp_path):
    """A multirun of six: two are done, Ctrl-C stopped the third. Pages and terminal say so."""
    begin_sweep(tmp_path, 6)
    for number in range(3):
        run(tmp_path, number, [f"seed={number}"], top1=None if number == 2 else 0.0)
        end_run(tmp_path / str(number), "stopped" if number == 2 else "done")
    write_sweep(tmp_path)
    page = (tmp_path / "sweep.html").read_text()
    said = "2 of 6 runs are done, 1 stopped, 3 not started."
    assert "<h1>Sweep of 6 runs</h1>" in page
    assert f'<p class="first">{said}' in page
    assert as_text(*sweep_parts(tmp_path, read_runs(tmp_path))).startswith(said)
    (note,) = tmp_path.glob(".runs.txt")
    for damage in (b"", b"six", b"\xff"):
        note.write_bytes(damage)
        assert planned_runs(tmp_path) is None
    begin_sweep(tmp_path, None)  # another multirun in the same folder, of a sweeper that does not say it
    assert headline(read_runs(tmp_path), planned_runs(tmp_path)).startswith(
        "2 of 3 runs are done, 1 stopped."
    )


def test_no_runs_no_pages(tmp_path):
    write_sweep(tmp_path)
    assert not list(tmp_path.glob("sweep.*"))


def test_a_shared_setting_counts_where_the_method_reads_it(tmp_path):
    for number, (rate, reads) in enumerate([("1e-4", True), ("1e-5", True), ("1e-5", False)]):
        folder = tmp_path / str(number) / ".hydra"
        folder.mkdir(parents=True)
        (folder / "overrides.yaml").write_text(f"- learning_rate={rate}\n- task.identity=A\n")
        (folder / "config.yaml").write_text(
            "method:\n  learning_rate: ${learning_rate}\n" if reads else "method: {}\n"
        )
    assert [run.swept for run in read_runs(tmp_path)] == [
        {"learning_rate": "1e-4"},
        {"learning_rate": "1e-5"},
        {"learning_rate": ""},
    ]


def test_a_shared_setting_that_all_who_read_it_agree_on_is_not_swept(tmp_path):
    for number, method in enumerate(["slug", "ga", "gaft"]):
        folder = tmp_path / str(number) / ".hydra"
        folder.mkdir(parents=True)
        (folder / "overrides.yaml").write_text(f"- checkpoint=best\n- method={method}\n")
        (folder / "config.yaml").write_text(
            "method: {}\n" if method == "slug" else "method:\n  rule: ${checkpoint}\n"
        )
    assert [run.swept for run in read_runs(tmp_path)] == [
        {"method": "slug"},
        {"method": "ga"},
        {"method": "gaft"},
    ]


def test_a_run_forgot_when_its_rates_are_at_their_goals(tmp_path):
    """UA 95 % is at its goal, 94 % is not; images of the others are recognised as often as before."""
    for number, ua in enumerate((0.95, 0.94)):
        run(tmp_path, number, [f"seed={number}"])
        readings = {"forget/ua": UA, "retain/ira": replace(OTHERS, label="Others")}
        write(tmp_path / str(number), readings, before=(0.1, 0.9), after=(ua, 0.9))
    assert headline(read_runs(tmp_path), None) == (
        "2 of 2 runs are done. 1 of 2 forgot (forget/ua ≥ 95 %). Mean change of retain/ira: 0.00 ± 0.00 points."
    )


def test_results_of_earlier_versions_are_shown_without_changes(tmp_path):
    """They have no unit, role or label; the run beside them has."""
    for number in range(2):
        run(tmp_path, number, [f"seed={number}"], top1=0.0)
    path = tmp_path / "0" / "results.json"
    found = json.loads(path.read_text())
    for metrics in found["metrics"].values():
        for name in metrics:
            metrics[name] = {
                key: metrics[name][key] for key in ("value", "n", "low", "high", "better", "reads")
            }
    path.write_text(json.dumps(found))
    write_sweep(tmp_path)
    old, new = csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines())
    assert (old["after retain/top1"], old["change retain/top1"]) == ("0.88", "")
    assert round(float(new["change retain/top1"]), 6) == -2
    assert headline(read_runs(tmp_path), None) == "2 of 2 runs are done."
    assert "<svg" not in (tmp_path / "sweep.html").read_text()


def symbols(folder):
    """(Marker outlines by method, legend entries) of the figure of a sweep, in the order of its runs."""
    finished = [one for one in read_runs(folder) if one.results]
    drawn = sweep._figure(finished)
    shapes = [len(one.get_paths()[0].vertices) for one in drawn.axes[0].collections]
    return shapes, [text.get_text() for text in drawn.legends[0].get_texts()]


def test_each_method_has_a_symbol_of_its_own_in_the_figure(tmp_path):
    """A circle has 26 points, a square 5: two methods, one kept rate. One method has no entry of its own."""
    for number, method in enumerate(("ga", "slug", "ga")):
        run(tmp_path / "two", number, [f"method={method}", f"seed={number}"], top1=0.0)
        run(tmp_path / "one", number, [f"seed={number}"], top1=0.0)
    shapes, entries = symbols(tmp_path / "two")
    assert (len(shapes), shapes[0] != shapes[1]) == (2, True)
    assert entries == ["retain/top1", "ga", "slug"]
    shapes, entries = symbols(tmp_path / "one")
    assert (len(shapes), entries) == (1, ["retain/top1"])


def test_a_sweep_says_the_words_of_the_runs_verdicts(tmp_path):
    run(tmp_path, 0, ["seed=0"], top1=0.0)
    path = tmp_path / "0" / "results.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "verdict": {"kind": "unsure"}}))
    write_sweep(tmp_path)
    assert row_of(read_runs(tmp_path)[0])["verdict"] == word("unsure") == "not shown"
    assert '<td class="unsure">not shown</td>' in (tmp_path / "sweep.html").read_text()
    assert "Verdicts: 1 not shown." in headline(read_runs(tmp_path), None)

import csv

import pytest
import torch

from muwa.eval.clip.relearning import reading, steps_until_back
from muwa.report.runs import SweptRun, Variant, grouped
from muwa.report.tables.methods import _latex, _write, accuracies, applies, evidence, paired, write


def run(method, forget, retain, *, seconds=1.0, data="d", model="m", known=1.0, name="X"):
    def metrics(top1, kept):
        found = {
            "forget/top1": top1,
            "forget/top5": top1,
            "retain/top1": kept,
            "retain/top5": 1.0,
            "utility/top1": 0.5,
        }
        return {
            name: {"value": value, "better": "lower" if "forget" in name else "higher", "reads": ""}
            for name, value in found.items()
        }

    provenance = {
        "method": method,
        "model": {"source": "clip", "fingerprint": model, "weights": f"{model * 9}"},
        "data": {"fingerprint": data},
    }
    return {"provenance": provenance, "metrics": {"before": metrics(known, 0.9), "after": metrics(forget, retain)},
            "task": {"names": [name]},
            "cost": {"seconds": seconds, "peak_memory_bytes": 2e9, "samples": 1500, "parameters": 16384, "bytes": 70_000}}  # fmt: skip


RUNS = [
    SweptRun({"method": "slug", "task.identity": "A", "method.rule": ""}, run("slug", 0.0, 0.8, seconds=2)),
    SweptRun(
        {"method": "slug", "task.identity": "B", "method.rule": ""},
        run("slug", 0.5, 0.6, seconds=4, data="B"),
    ),
    SweptRun({"method": "ga", "task.identity": "A", "method.rule": "first"}, run("ga", 0.0, 0.5)),
]


def test_rows_are_methods_and_their_settings_over_what_was_forgotten():
    assert [variant.label for variant in grouped(RUNS)] == ["slug", "ga (rule=first)"]
    header, rows = accuracies(grouped(RUNS))
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["before"]["forget/top1"] == "100.0 ± 0.0"
    assert table["slug"] == {
        "method": "slug", "runs": "2", "forgotten": "1/2", "forget/top1": "25.00 ± 35.36", "forget/top5": "25.00 ± 35.36",
        "retain/top1": "70.00 ± 14.14", "retain/top5": "100.0 ± 0.0", "utility/top1": "50.00 ± 0.00",
        "seconds": "3.00 ± 1.41", "memory GB": "2.00 ± 0.00", "samples": "1,500 ± 0", "parameters": "16,384 ± 0",
        "stored MB": "0.070 ± 0.000",
    }  # fmt: skip
    assert table["ga (rule=first)"]["retain/top1"] == "50.00"


def test_the_unedited_model_counts_once_a_request_however_many_variants_share_it():
    """Nine people known in 8 of 8 and one in 7 of 8: 98.75, and a sample std of 12.5 / sqrt(10) = 3.95, of one variant or of three."""
    people = [(f"p{i}", 1.0 if i else 0.875) for i in range(10)]
    runs = [SweptRun({"method": method, "task.identity": who}, run(method, 0.0, 0.8, data=who, known=known))
            for method in ("slug", "ga", "ssd") for who, known in people]  # fmt: skip
    assert accuracies(grouped(runs))[1][0][:4] == ["before", "10", "", "98.75 ± 3.95"]
    assert evidence(grouped(runs))[1][0][2] == "0.988 ± 0.040"


def test_each_model_has_its_own_row_before():
    runs = [SweptRun({"method": method, "model.name": model}, run(method, 0.0, 0.8, model=model, known=known))
            for method in ("slug", "ga") for model, known in (("a", 1.0), ("b", 0.5))]  # fmt: skip
    rows = accuracies(grouped(runs))[1]
    assert [row[:4] for row in rows[:2]] == [
        ["before (clip, aaaaaaaa)", "1", "", "100.0"],
        ["before (clip, bbbbbbbb)", "1", "", "50.00"],
    ]
    assert len(rows) == 2 + 4
    assert evidence(grouped(runs))[0][2:4] == ["before (clip, aaaaaaaa)", "before (clip, bbbbbbbb)"]


def test_a_run_made_again_for_a_setting_that_its_method_does_not_read_counts_once():
    assert {variant: len(runs) for variant, runs in grouped([*RUNS, RUNS[0], RUNS[1]]).items()} == {
        Variant("slug"): 2,
        Variant("ga", ("rule=first",)): 1,
    }


def test_the_table_of_evidence_has_every_shared_metric_with_its_direction():
    header, rows = evidence(grouped(RUNS))
    assert header == ["metric", "better", "before", "slug", "ga (rule=first)"]
    assert rows[2] == ["retain/top1", "higher", "0.900 ± 0.000", "0.700 ± 0.141", "0.500"]
    assert [row[0] for row in rows] == [
        "forget/top1",
        "forget/top5",
        "retain/top1",
        "retain/top5",
        "utility/top1",
    ]


def test_methods_are_compared_request_by_request_where_both_forgot():
    """ga keeps 5 and 7 points more on A and B; on C slug did not forget. t(0.975, 1) = 12.706, half = 12.706 * 1.414 / 1.414."""
    runs = []
    for name, slug, ga, gone in (("A", 0.80, 0.85, 0.0), ("B", 0.70, 0.77, 0.0), ("C", 0.9, 0.1, 0.5)):
        runs += [SweptRun({"method": "slug", "task.identity": name}, run("slug", gone, slug)),
                 SweptRun({"method": "ga", "task.identity": name}, run("ga", 0.0, ga))]  # fmt: skip
    header, rows = paired(runs)
    assert header == ["kept more than slug, points", "requests", "retain/top1", "utility/top1"]
    assert rows == [["ga", "2", "+6.00 (-6.71 to +18.71)", "0.00 (0.00 to 0.00)"]]


def test_seeds_of_one_person_are_not_as_many_people():
    """A keeps 5, 6 and 7 points more by its three seeds, B 8 by the one both forgot: 6 and 8, n = 2. Half: 12.706 * 1.414 / 1.414."""
    runs = []
    for name, seed, ga, gone in (
        ("A", "0", 0.75, 0.0),
        ("A", "1", 0.76, 0.0),
        ("A", "2", 0.77, 0.0),
        ("B", "0", 0.78, 0.0),
        ("B", "1", 0.1, 0.5),
    ):
        runs += [SweptRun({"method": "slug", "task.identity": name, "seed": seed}, run("slug", gone, 0.7)),
                 SweptRun({"method": "ga", "task.identity": name, "seed": seed}, run("ga", 0.0, ga))]  # fmt: skip
    assert paired(runs)[1] == [["ga", "2", "+7.00 (-5.71 to +19.71)", "0.00 (0.00 to 0.00)"]]
    once = [SweptRun({**one.swept, "seed": str(i)}, one.results) for i, one in enumerate(runs[:4])]
    assert paired(once)[1] == [["ga", "0", "-", "-"]]  # never by the same seed


def test_a_mean_over_steps_that_were_cut_off_is_a_lower_bound():
    """The metrics are relearning's own: of two pictures that were known, none came back in 100 steps; both at step 24."""
    known, never = torch.ones(2, dtype=torch.bool), torch.zeros(101, 2, dtype=torch.bool)
    back = never.clone()
    back[24:] = True
    runs = []
    for method, hits in (("slug", (never, back)), ("ga", (back, back)), ("ssd", (never,))):
        for i, each in enumerate(hits):
            found = run(method, 0.0, 0.8, data=str(i))
            for when, seen in (("before", known[None]), ("after", each)):
                steps = steps_until_back(seen, known, 100, 1, reading("5", 5, 100))
                found["metrics"][when]["relearn/steps_5"] = steps.record()
            runs.append(SweptRun({"method": method, "task.identity": str(i)}, found))
    header, rows = evidence(grouped(runs))
    assert header == ["metric", "better", "before", "slug", "ga", "ssd"]
    assert rows[-1] == ["relearn/steps_5", "higher", "0 ± 0", "> 62.00", "24.00 ± 0.00", "> 100.0"]
    for found in runs:  # results of earlier versions did not say it
        del found.results["metrics"]["after"]["relearn/steps_5"]["capped"]
    assert evidence(grouped(runs))[1][-1][3:] == [
        "62.00 ± 53.74",
        "24.00 ± 0.00",
        "100.0",
    ]  # 76 / sqrt(2) = 53.74


def test_three_formats_and_a_figure_are_written(tmp_path):
    assert applies(RUNS)
    write(tmp_path, RUNS)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "table.csv",
        "table.md",
        "table.tex",
        "table.png",
        "evidence.csv",
        "evidence.md",
        "evidence.tex",
        "paired.csv",
        "paired.md",
        "paired.tex",
    }
    assert list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))[1][0] == "before"
    assert (tmp_path / "table.md").read_text().splitlines()[4].startswith("| ga (rule=first) | 1 | 1/1 | 0 |")
    tex = (tmp_path / "table.tex").read_text()
    assert r"slug & 2 & 1/2 & 25.00 $\pm$ 35.36" in tex
    assert tex.count(r"\\") == 5 - 1
    assert _latex("> 62.00") == "$>$ 62.00"


def test_one_run_has_no_table():
    assert not applies([SweptRun({}, run("slug", 0.0, 0.8))])


@pytest.mark.parametrize("key", ["task.identity", "seed"])
def test_a_sweep_over_people_alone_has_a_row_of_its_method_and_nothing_to_compare(tmp_path, key):
    write(tmp_path, [SweptRun({key: who}, run("slug", 0.0, kept)) for who, kept in (("a", 0.8), ("b", 0.9))])
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "table.md", "table.tex", "table.png"}
    last = (tmp_path / "table.md").read_text().splitlines()[-1]
    assert last.startswith("| slug | 2 | 2/2 | 0 ± 0 |")
    assert "85.00 ± 7.07" in last


def test_a_label_is_no_formula_and_no_markup(tmp_path):
    """The other cells are numbers of ours, signs and all: they stay as they are."""
    _write(tmp_path / "t", ["method", "=x"], [["=ga (a|b, {k})", "+2.00 (-0.48 to +4.48)"], ["-1", "-"]])
    assert list(csv.reader((tmp_path / "t.csv").read_text().splitlines())) == [
        ["method", "'=x"],
        ["'=ga (a|b, {k})", "+2.00 (-0.48 to +4.48)"],
        ["-1", "-"],
    ]
    assert r"| =ga (a\|b, {k}) |" in (tmp_path / "t.md").read_text()
    assert r"=ga (a|b, \{k\}) & +2.00" in (tmp_path / "t.tex").read_text()

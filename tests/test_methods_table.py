import csv

import pytest

from muwa.methods_table import accuracies, evidence, grouped, paired, write_methods_table


def run(method, forget, retain, *, seconds=1.0):
    def metrics(top1, kept):
        found = {"forget/top1": top1, "forget/top5": top1, "retain/top1": kept, "retain/top5": 1.0, "utility/top1": 0.5}
        return {
            name: {"value": value, "better": "lower" if "forget" in name else "higher"} for name, value in found.items()
        }

    return {"provenance": {"method": method}, "metrics": {"before": metrics(1.0, 0.9), "after": metrics(forget, retain)},
            "task": {"names": ["X"]},
            "cost": {"seconds": seconds, "peak_memory_bytes": 2e9, "samples": 1500, "parameters": 16384, "bytes": 70_000}}  # fmt: skip


RUNS = [
    ({"method": "slug", "task.identity": "A", "method.rule": ""}, run("slug", 0.0, 0.8, seconds=2)),
    ({"method": "slug", "task.identity": "B", "method.rule": ""}, run("slug", 0.5, 0.6, seconds=4)),
    ({"method": "ga", "task.identity": "A", "method.rule": "first"}, run("ga", 0.0, 0.5)),
]


def test_rows_are_methods_and_their_settings_over_what_was_forgotten():
    assert list(grouped(RUNS)) == ["slug", "ga (rule=first)"]
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


def test_a_run_made_again_for_a_setting_that_its_method_does_not_read_counts_once():
    assert {label: len(runs) for label, runs in grouped([*RUNS, RUNS[0], RUNS[1]]).items()} == {
        "slug": 2,
        "ga (rule=first)": 1,
    }


def test_the_table_of_evidence_has_every_shared_metric_with_its_direction():
    header, rows = evidence(grouped(RUNS))
    assert header == ["metric", "better", "before", "slug", "ga (rule=first)"]
    assert rows[2] == ["retain/top1", "higher", "0.900 ± 0.000", "0.700 ± 0.141", "0.500"]
    assert [row[0] for row in rows] == ["forget/top1", "forget/top5", "retain/top1", "retain/top5", "utility/top1"]


def test_methods_are_compared_request_by_request_where_both_forgot():
    """ga keeps 5 and 7 points more on A and B; on C slug did not forget. t(0.975, 1) = 12.706, half = 12.706 * 1.414 / 1.414."""
    runs = []
    for name, slug, ga, gone in (("A", 0.80, 0.85, 0.0), ("B", 0.70, 0.77, 0.0), ("C", 0.9, 0.1, 0.5)):
        runs += [({"method": "slug", "task.identity": name}, run("slug", gone, slug)),
                 ({"method": "ga", "task.identity": name}, run("ga", 0.0, ga))]  # fmt: skip
    header, rows = paired(runs)
    assert header == ["kept more than slug, points", "requests", "retain/top1", "utility/top1"]
    assert rows == [["ga", "2", "+6.00 (-6.71 to +18.71)", "+0.00 (+0.00 to +0.00)"]]


def test_three_formats_and_a_figure_are_written(tmp_path):
    write_methods_table(tmp_path, RUNS)
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


@pytest.mark.parametrize("swept", [{"task.identity": "A"}, {"seed": "1"}, {}])
def test_a_sweep_over_people_alone_has_no_table_of_methods(tmp_path, swept):
    write_methods_table(tmp_path, [(swept, run("slug", 0.0, 0.8))])
    assert not list(tmp_path.iterdir())

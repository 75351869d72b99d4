"""The table of identities, averaged by hand."""

from muwa.report.runs import SweptRun
from muwa.report.tables.vlm import applies, metrics_of, write


def run(name: str, after: float, **more: float) -> dict:
    rates = {
        "forget/answered": after,
        "retain/answered": 0.9,
        "utility/answered": 0.8,
        "forget/refused": 0.1,
        **more,
    }
    before = {**rates, "forget/answered": 1.0}
    units = {"mme/perception": "score"}
    metrics = {when: {key: {"value": value, "unit": units.get(key, "rate")} for key, value in found.items()}
               for when, found in (("before", before), ("after", rates))}  # fmt: skip
    return {"task": {"names": [name]}, "metrics": metrics, "provenance": {"method": "slug", "model": {"source": "tiny"}},
            "cost": {"seconds": 2.0}}  # fmt: skip


def test_a_row_an_identity_and_their_mean(tmp_path) -> None:
    runs = [
        SweptRun({"task.identity": name}, run(name, x)) for name, x in (("Ada Fox", 0.0), ("Bo Hill", 0.1))
    ]
    assert applies(runs)
    write(tmp_path, runs)
    lines = (tmp_path / "vlm.md").read_text().splitlines()
    assert lines[0] == "| forgotten | forget/answered | retain/answered | utility/answered | seconds |"
    assert lines[2] == "| Ada Fox | 100.0 → 0.0 | 90.0 → 90.0 | 80.0 → 80.0 | 2.0 |"
    assert lines[4] == "| **mean of 2** | 100.0 → 5.0 | 90.0 → 90.0 | 80.0 → 80.0 | 2.0 |"
    assert "99.50 -> 2.8" in lines[-1]


def test_methods_have_their_own_rows_and_means(tmp_path) -> None:
    tried = [
        ("clip", "Ada Fox", 0.0),
        ("clip", "Bo Hill", 0.1),
        ("answer", "Ada Fox", 0.5),
        ("answer", "Bo Hill", 0.7),
    ]
    runs = [
        SweptRun({"method.gradient": of, "task.identity": name}, run(name, after))
        for of, name, after in tried
    ]
    write(tmp_path, runs)
    rows = [line.split(" | ") for line in (tmp_path / "vlm.md").read_text().splitlines()[2:8]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("| slug (gradient=clip)", "Ada Fox", "100.0 → 0.0"),
        ("| slug (gradient=clip)", "Bo Hill", "100.0 → 10.0"),
        ("| slug (gradient=clip)", "**mean of 2**", "100.0 → 5.0"),
        ("| slug (gradient=answer)", "Ada Fox", "100.0 → 50.0"),
        ("| slug (gradient=answer)", "Bo Hill", "100.0 → 70.0"),
        ("| slug (gradient=answer)", "**mean of 2**", "100.0 → 60.0"),
    ]


def test_benchmarks_follow_where_every_run_has_them() -> None:
    runs = [
        run("Ada", 0, **{"gqa/accuracy": 0.6, "gqa/colour": 0.5, "mme/perception": 1400}),
        run("Bo", 0, **{"gqa/accuracy": 1}),
    ]
    assert metrics_of(runs) == ["forget/answered", "retain/answered", "utility/answered", "gqa/accuracy"]
    assert metrics_of(runs[:1])[3:] == ["gqa/accuracy", "mme/perception"]


def test_scores_are_no_rates_and_results_without_units_are_shown_as_they_are(tmp_path) -> None:
    found = run("Ada Fox", 0.0, **{"mme/perception": 1400.4})
    write(tmp_path, [SweptRun({}, found)])
    row = (tmp_path / "vlm.md").read_text().splitlines()[2]
    assert row == "| Ada Fox | 100.0 → 0.0 | 90.0 → 90.0 | 80.0 → 80.0 | 1400 → 1400 | 2.0 |"
    for metrics in found["metrics"].values():
        for metric in metrics.values():
            del metric["unit"]
    write(tmp_path, [SweptRun({}, found)])
    row = (tmp_path / "vlm.md").read_text().splitlines()[2]
    assert row == "| Ada Fox | 1 → 0 | 0.9 → 0.9 | 0.8 → 0.8 | 1400 → 1400 | 2.0 |"


def test_other_sweeps_have_none() -> None:
    assert not applies([SweptRun({}, {"metrics": {"after": {"forget/top1": {"value": 0}}}})])

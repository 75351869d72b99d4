"""The benchmark's table, averaged by hand."""

import csv
from pathlib import Path

from muwa.report.runs import SweptRun, Variant
from muwa.report.tables.unlearncanvas import applies, measured, published, write


def run(
    method: str, kind: str, ua: float, seconds: float = 2.0, *, concept: str = "neon", known: float = 0.02
) -> dict:
    """results.json, as far as the table reads it."""
    metrics = {when: {"forget/ua": {"value": value}, "retain/ira": {"value": 0.9}, "retain/cra": {"value": 0.8}}
               for when, value in (("before", known), ("after", ua))}  # fmt: skip
    made_of = {"model": {"source": "tiny", "fingerprint": "m"}, "data": {"fingerprint": kind + concept}}
    return {
        "task": {"kind": kind}, "metrics": metrics, "provenance": {"method": method, **made_of},
        "cost": {"seconds": seconds, "peak_memory_bytes": 2e9, "bytes": 5e5},
    }  # fmt: skip


def test_one_row_a_method_mean_over_concepts() -> None:
    before, slug, esd = measured(
        {
            Variant("slug"): [
                run("slug", "style", 1.0),
                run("slug", "style", 0.5, 4.0, concept="pixel"),
                run("slug", "class", 0.7),
            ],
            Variant("esd"): [run("esd", "class", 0.3)],
        }
    )
    assert slug["method"] == "muwa slug"
    assert (slug["style UA"], slug["class UA"], slug["style IRA"], slug["class CRA"]) == (
        "75.00",
        "70.00",
        "90.00",
        "80.00",
    )
    assert (slug["seconds"], slug["memory GB"], slug["storage GB"], slug["FID"]) == (
        "2.67",
        "2.00",
        "0.00050",
        "",
    )
    assert (esd["style UA"], esd["class UA"]) == ("", "30.00")
    assert (before["style UA"], before["seconds"]) == ("2.00", "")


def test_settings_have_rows_of_their_own_and_a_run_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    """UA of neon and pixel by two settings; the last run differs from the first in nothing that its method reads."""
    runs = [
        SweptRun({"method.steps": steps, "task.concept": concept}, run("slug", kind, ua, concept=concept))
        for steps, concept, kind, ua in (
            ("5", "neon", "style", 1.0), ("5", "pixel", "style", 0.5), ("9", "neon", "style", 0.2), ("5", "neon", "style", 1.0),
        )
    ]  # fmt: skip
    write(tmp_path, runs)
    with (tmp_path / "unlearncanvas.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["muwa slug (steps=5)"]["style UA"] == "75.00"
    assert rows["muwa slug (steps=9)"]["style UA"] == "20.00"
    assert (
        rows["muwa before"]["source"] == "this sweep, 2 runs, tiny"
    )  # neon and pixel, each by several settings


def test_the_unedited_model_counts_a_request_once_whatever_the_number_of_methods() -> None:
    """Neon (0.2 before) by two methods, pixel (0.6) by one: 40 %, not a third of both."""
    first, *_ = measured({
        Variant("slug"): [run("slug", "style", 1.0, known=0.2), run("slug", "style", 1.0, concept="pixel", known=0.6)],
        Variant("uce"): [run("uce", "style", 1.0, known=0.2)],
    })  # fmt: skip
    assert first["style UA"] == "40.00"


def test_a_fid_of_clip_features_is_not_beside_inceptions(tmp_path: Path) -> None:
    """Other features, and results of earlier versions that do not name them, are in neither column."""
    runs = []
    distances = (("slug", {"features": "CLIP"}, 0.25), ("esd", {"features": "Inception"}, 65.0))
    for name, whose, value in (*distances, ("uce", {"features": "DINO"}, 3.0), ("old", {}, 4.0)):
        runs.append(SweptRun({"method": name}, run(name, "style", 1.0)))
        for metrics in runs[-1].results["metrics"].values():
            metrics["quality/fid"] = {"value": value, **whose}
    write(tmp_path, runs)
    with (tmp_path / "unlearncanvas.csv").open() as file:
        rows = {row["method"]: (row["FID"], row["FID (CLIP features)"]) for row in csv.DictReader(file)}
    assert rows["muwa slug"] == ("", "0.25")
    assert rows["muwa esd"] == ("65.00", "")
    assert rows["muwa uce"] == rows["muwa old"] == ("", "")
    assert rows["ESD"] == ("65.55", "")
    line = next(
        line for line in (tmp_path / "unlearncanvas.md").read_text().splitlines() if line.startswith("| ESD ")
    )
    assert "| 65.55 | - |" in line


def test_every_published_row_has_its_source() -> None:
    rows = {row["method"]: row for row in published()}
    assert all("arXiv" in row["source"] for row in rows.values())
    assert rows["SLUG"]["style UA"] == "86.29"
    assert rows["ESD"]["seconds"] == "6163"


def test_it_is_written_only_for_styles_and_classes(tmp_path: Path) -> None:
    assert not applies([SweptRun({}, run("slug", "identity", 1.0))])
    both = [SweptRun({}, run("slug", "identity", 0.0)), SweptRun({}, run("slug", "style", 1.0))]
    assert applies(both)
    write(tmp_path, both)
    with (tmp_path / "unlearncanvas.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows[:2]] == ["muwa before", "muwa slug"]
    assert len(rows) == 2 + len(published())
    page = (tmp_path / "unlearncanvas.md").read_text()
    assert page.count("\n|") == len(rows) + 1
    assert "other models, data and machines" in page

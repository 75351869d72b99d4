"""What was detected before and after, on samples counted by hand."""

import pytest

from muwa.eval.statistics import wilson
from muwa.report.detections import detections, sample_rows
from muwa.types.metric import Metric, Sample


def metric(*rows):
    samples = tuple(
        Sample(prompt, i, None, concept, 1.0 if hit else -1.0, hit)
        for i, (prompt, concept, hit) in enumerate(rows)
    )
    return Metric(0.0, len(rows), samples=samples)


BEFORE = {
    "forget/detected": metric(("a", "x", True), ("b", "x", True), ("c", "x", False), ("d", "", True)),
    "retain/top1": Metric(1.0, 3),
}
AFTER = {
    "forget/detected": metric(("a", "x", False), ("e", "x", True), ("c", "x", True), ("d", "", True)),
    "retain/top1": Metric(1.0, 3),
}


def test_a_concept_is_a_row_with_what_changed():
    first, second = detections(BEFORE, AFTER)
    assert (first["metric"], first["concept"], first["n"]) == ("forget/detected", "x", 3)
    assert (first["before"], first["after"], first["lost"], first["new"]) == (
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        1,
        1,
    )
    assert (first["before_low"], first["before_high"]) == wilson(2, 3)
    assert first["change"] == 0.0
    assert first["change_low"] == pytest.approx(-first["change_high"])
    assert (second["concept"], second["n"], second["change"]) == ("", 1, 0.0)


def test_samples_are_listed_with_both_scores_and_a_found_prompt():
    rows = sample_rows(BEFORE, AFTER)
    assert [
        (one["prompt"], one["before"], one["after"], one["hit_before"], one["hit_after"]) for one in rows
    ] == [
        ("a", 1.0, -1.0, True, False),
        ("b", 1.0, 1.0, True, True),
        ("c", -1.0, 1.0, False, True),
        ("d", 1.0, 1.0, True, True),
    ]
    assert [one["prompt_after"] for one in rows] == ["a", "e", "c", "d"]

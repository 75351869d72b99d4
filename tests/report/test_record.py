import json
from dataclasses import replace

import torch
from report.finished import UA, report

from muwa.report.record import answers, results
from muwa.types.edit import Edit, Move
from muwa.types.example import Example
from muwa.types.metric import Metric

TEXT = Example("forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill")
IMAGE = Example("retain", "A photo of Bo Hill", "Bo Hill", torch.zeros(3, 2, 2), torch.zeros(3, 2, 2))


def test_results_hold_what_the_schema_asks(tmp_path):
    found = results(report(tmp_path))
    assert found["schema"] == 1
    assert found["metrics"]["after"]["forget/top1"]["value"] == 0.0
    assert found["metrics"]["after"]["forget/top1"]["n"] == 2
    assert (found["edit"]["layer"], found["edit"]["step"], found["edit"]["relative_norm"]) == (
        "visual.proj",
        2.0,
        0.2,
    )
    assert found["front"] == [
        {"concept": "Ada Fox", "layer": "visual.proj", "tower": "vision", "importance": 0.5, "alignment": 0.1}
    ]
    assert [row["forget_top5"] for row in found["trace"]] == [0.5, 0.0]
    assert found["task"]["forget_pairs"] == {"Ada Fox": 6}
    assert (found["task"]["retain_pairs"], found["task"]["retain_pairs_left_out"]) == (10, 2)
    assert json.loads(json.dumps(found)) == found


def test_every_key_of_schema_1_is_there(tmp_path):
    """The keys of the first results.json that was written, level by level."""
    found = results(report(tmp_path))
    assert list(found) == [
        "schema", "name", "objective", "metrics", "edit", "front", "scores", "trace", "search", "similarity", "said",
        "changes", "verdict", "request", "edited", "detections", "samples", "task", "broken", "seconds", "cache", "peak_memory_bytes", "cost", "provenance",
        "broken_by_kind", "requests",
    ]  # fmt: skip
    metric, step, search = found["metrics"]["before"]["forget/top1"], found["trace"][0], found["search"][0]
    assert list(metric)[:6] == ["value", "n", "low", "high", "better", "reads"]
    assert list(step)[:12] == [
        "concept", "layer", "tower", "iteration", "step", "relative_norm", "forget_top1", "forget_top5", "forget_cosine",
        "retain_top1", "utility_top1", "feasible",
    ]  # fmt: skip
    assert list(search) == ["concept", "rule", "granularity", "chosen", "why", "feasible", "before"]
    assert (search["before"]["layer"], search["before"]["tower"], search["before"]["forget_top1"]) == (
        "",
        "",
        1.0,
    )
    assert list(found["scores"][0]) == [
        "concept", "layer", "importance", "alignment", "cosine", "weight_norm", "forget_norm", "retain_norm", "tower", "gain",
    ]  # fmt: skip
    assert list(found["front"][0]) == ["concept", "layer", "tower", "importance", "alignment"]
    assert list(found["edit"]) == ["tower", "layer", "step", "relative_norm", "moves"]
    assert list(found["task"]) == [
        "kind", "names", "forget_pairs", "retain_pairs", "retain_pairs_left_out", "classes", "pictures",
        "prompts",
    ]  # fmt: skip


def test_newer_fields_stand_beside_them(tmp_path):
    made = report(tmp_path)
    ua = {"forget/ua": Metric(1.0, 4, reading=UA, capped=True)}
    found = results(replace(made, before={**made.before, **ua}, after={**made.after, **ua}))
    assert {
        key: found["metrics"]["after"]["forget/ua"][key] for key in ("unit", "role", "gone_at", "capped")
    } == {"unit": "rate", "role": "forgotten", "gone_at": 0.05, "capped": True}
    assert {key: found["trace"][1][key] for key in ("step_unit", "forgotten", "kept", "layers")} == {
        "step_unit": "lambda",
        "forgotten": 0.0,
        "kept": 0.85,
        "layers": {"": "visual.proj"},
    }


def test_an_edit_of_nothing_is_null_and_the_first_move_stands_for_several(tmp_path):
    made = report(tmp_path)
    none = results(replace(made, edit=Edit({}, ())))["edit"]
    assert none == {"tower": None, "layer": None, "step": None, "relative_norm": None, "moves": []}
    moves = (Move("Ada Fox", "text", "a", 1.0, 0.1), Move("Bo Hill", "vision", "b", 2.0, 0.2))
    two = results(replace(made, edit=Edit({}, moves)))["edit"]
    assert (two["layer"], two["step"], [move["layer"] for move in two["moves"]]) == ("a", 1.0, ["a", "b"])


def test_answers_are_the_examples_in_words(tmp_path):
    said = {
        "question": "Who is this?",
        "role": "forget",
        "expected": "Ada Fox",
        "before": "Ada Fox",
        "after": "Bo Hill",
    }
    assert answers((IMAGE, TEXT)) == [said]
    assert results(replace(report(tmp_path), examples=(TEXT, IMAGE)))["said"] == [said]


def test_the_change_of_each_rate_the_verdict_and_the_request_are_kept(tmp_path):
    """90 to 88 %, each 60 to 100: independent, so -2 - sqrt(28^2 + 10^2) and -2 + sqrt(12^2 + 30^2) points."""
    asked = {"id": "17", "operator": None, "date": None, "basis": None}
    found = results(replace(report(tmp_path), request=asked, edited={"patch": "d" * 64}))
    change = found["changes"]["retain/top1"]
    assert (round(change["value"], 9), change["paired"]) == (-0.02, False)
    assert (round(change["low"], 4), round(change["high"], 4)) == (-0.3173, 0.3031)
    assert set(found["changes"]) == {"forget/top1", "retain/top1"}
    assert found["verdict"]["kind"] == "unsure"
    assert found["verdict"]["rules"] == {"kept_points": 5.0, "forget_high": 0.5}
    assert (found["request"], found["edited"]) == (asked, {"patch": "d" * 64})
    cosine = Metric(0.2, 2, reading=replace(UA, unit="cosine", role="", label=""))
    made = report(tmp_path)
    both = {"before": {**made.before, "c": cosine}, "after": {**made.after, "c": cosine}}
    assert "c" not in results(replace(made, **both))["changes"]  # no rate

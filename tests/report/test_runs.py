"""Runs of a sweep, grouped by hand."""

from muwa.report.runs import SweptRun, Variant, grouped, unedited, variant_of


def results(method="slug", *, source="clip", model="m", data="d", weights=""):
    said = {"source": source, "fingerprint": model} | ({"weights": weights} if weights else {})
    return {"provenance": {"method": method, "model": said, "data": {"fingerprint": data}}}


def test_a_variant_is_a_method_and_its_settings_without_request_and_seed():
    swept = {
        "method": "ga",
        "task.identity": "A",
        "seed": "3",
        "method.rule": "first",
        "layer_search.k": "2",
        "x": "",
    }
    assert variant_of(SweptRun(swept)) == Variant("ga", ("rule=first", "layer_search.k=2"))
    assert variant_of(SweptRun({"seed": "1"}, results("ssd"))) == Variant("ssd")


def test_runs_of_a_variant_stand_together_and_a_repeated_one_counts_once():
    runs = [
        SweptRun({"method": m, "task.identity": who}, results(m, data=who))
        for m in ("slug", "ga")
        for who in "AB"
    ]
    groups = grouped([*runs, runs[0]])
    assert [variant.label for variant in groups] == ["slug", "ga"]
    assert [found["provenance"]["data"]["fingerprint"] for found in groups[Variant("slug")]] == ["A", "B"]


def test_the_unedited_model_has_a_run_a_request_and_a_label_where_there_are_several():
    one = {Variant("slug"): [results(data="A"), results(data="B")], Variant("ga"): [results(data="A")]}
    assert {label: len(runs) for label, runs in unedited(one).items()} == {"before": 2}
    two = {Variant("slug"): [results(model="m", weights="a" * 64), results(source="sd", model="n")]}
    assert list(unedited(two)) == ["before (clip, aaaaaaaa)", "before (sd)"]

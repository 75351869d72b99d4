import json
from dataclasses import replace

import pytest
import tiny

from muwa.report.page import grouped, metric_rows, results, verdicts, write_report
from muwa.types.edit import Edit, Move
from muwa.types.metric import Metric
from muwa.types.questions import AnswerSample, Question
from muwa.types.report import Report
from muwa.types.search import Evaluation, LayerScore, Search


def evaluation(layer, step, forget, feasible):
    return Evaluation(layer, "vision", 1, step, step / 10, forget, forget, 0.2, 0.9, 0.8, feasible)


def report(folder, *, chosen=1, after=0.0):
    """A finished run of two steps on one layer, made by hand."""
    score = LayerScore(0.5, 0.1, -0.1, 2.0, 1.0, 3.0, "vision")
    trace = (evaluation("visual.proj", 1.0, 0.5, False), evaluation("visual.proj", 2.0, 0.0, True))
    before = evaluation("", 0.0, 1.0, False)
    name = tiny.NAMES[0]
    search = Search(
        name, "constrained", "tensor", {"visual.proj": score}, ("visual.proj",), before, trace, chosen, "A reason."
    )
    moves = () if chosen is None else (Move(name, "vision", "visual.proj", 2.0, 0.2),)
    return Report(
        name="slug", folder=folder, objective=0.02,
        before={"forget/top1": Metric(1.0, 2, 0.3, 1.0, "lower", "r"), "retain/top1": Metric(0.9, 7, 0.6, 1.0, "higher", "r")},
        after={"forget/top1": Metric(after, 2, 0.0, 0.7, "lower", "r"), "retain/top1": Metric(0.88, 7, 0.6, 1.0, "higher", "r")},
        edit=Edit({}, moves, (search,)), task=tiny.task(),
        similarity={"names": list(tiny.NAMES[:2]), "n": [2, 1], "before": [[0.5, 0.1], [0.1, 0.5]], "after": [[0.2, 0.1], [0.1, 0.5]]},
        seconds={"total": 1.0}, cache={"search": "miss"}, peak_memory_bytes=10**9,
        provenance={"model": {"source": "tiny"}, "command": "python launch.py"},
    )  # fmt: skip


def test_results_hold_what_the_schema_asks(tmp_path):
    found = results(report(tmp_path))
    assert found["schema"] == 1
    assert found["metrics"]["after"]["forget/top1"]["value"] == 0.0
    assert found["metrics"]["after"]["forget/top1"]["n"] == 2
    assert (found["edit"]["layer"], found["edit"]["step"], found["edit"]["relative_norm"]) == ("visual.proj", 2.0, 0.2)
    assert found["front"] == [
        {"concept": "Ada Fox", "layer": "visual.proj", "tower": "vision", "importance": 0.5, "alignment": 0.1}
    ]
    assert [row["forget_top5"] for row in found["trace"]] == [0.5, 0.0]
    assert found["task"]["forget_pairs"] == {"Ada Fox": 6}
    assert (found["task"]["retain_pairs"], found["task"]["retain_pairs_left_out"]) == (10, 2)
    assert json.loads(json.dumps(found)) == found


def test_the_page_stands_alone_and_is_whole(tmp_path):
    write_report(report(tmp_path), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert "Ada Fox is no longer the model&#39;s first guess: 100.0 % → 0.0 % on 2 held-out pictures." in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.rstrip().endswith("</html>")
    for name in ("pareto", "trace", "metrics", "similarity"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
    assert not list(tmp_path.rglob("*.draft*"))


def test_the_page_of_a_method_that_searches_no_layer_shows_its_steps_and_no_empty_section(tmp_path):
    made = report(tmp_path)
    rows = tuple(replace(row, layer="all weights", tower="both", step=1e-4) for row in made.edit.searches[0].trace)
    search = replace(made.edit.searches[0], rule="best", granularity="all weights", scores={}, front=(), trace=rows)
    moves = (Move("Ada Fox", "both", "all weights", 1e-4, 0.2),)
    write_report(replace(made, edit=Edit({}, moves, (search,))), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert "Which layers could be edited" not in page
    assert "How the step was found" in page
    assert page.count('class="chosen"') == 1  # both rows have the learning rate as their step
    assert "both all weights" not in page
    assert "layer&#39;s norm" not in page
    assert "layer's norm" not in page
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.png")) == ["metrics", "similarity", "trace"]


def test_the_verdict_never_praises_what_failed(tmp_path):
    texts = [(one["kind"], one["text"]) for one in verdicts(report(tmp_path, after=0.5))]
    assert (
        "bad",
        "Ada Fox is still sometimes the model's first guess: 100.0 % → 50.0 % on 2 held-out pictures.",
    ) in texts
    infeasible = verdicts(report(tmp_path, chosen=0))[0]
    assert infeasible["kind"] == "bad"
    assert "not feasible on the probe pictures" in infeasible["text"]
    none = verdicts(report(tmp_path, chosen=None, after=1.0))
    assert none[0]["text"] == "No step was found for Ada Fox, the model is unchanged for it. A reason."
    assert not [one for one in none if one["kind"] == "good"]


def test_forgetting_what_was_never_known_is_said_to_show_little(tmp_path):
    made = report(tmp_path)
    for key, value, words in (("forget/top1", 0.1, "recognised in 10% of 2"), ("forget/ua", 0.9, "drawn in 10% of 2"),
                              ("forget/answered", 0.0, "named in 0% of 2")):  # fmt: skip
        low = {key: Metric(value, 2)}
        found = verdicts(replace(made, before=low, after={}))
        assert found[0]["kind"] == "bad"
        assert words in found[0]["text"]
    assert not any("hardly knows" in one["text"] for one in verdicts(made))


def test_answers_are_in_the_verdict_the_page_and_the_results(tmp_path):
    picture = tiny.png(0)
    said = (AnswerSample(Question("Who is this?", (picture,), "identity", "forget", ("Ada Fox",)), "Ada Fox", "Bo Hill"),)
    before = {"forget/answered": Metric(1.0, 24), "forget/refused": Metric(0.0, 24), "forget/wrong_name": Metric(0.0, 24),
              "retain/answered": Metric(0.9, 90), "utility/answered": Metric(0.8, 80)}  # fmt: skip
    after = {**before, "forget/answered": Metric(0.0, 24), "forget/wrong_name": Metric(0.75, 24)}
    made = replace(report(tmp_path), before=before, after=after, said=said)
    assert verdicts(made)[0]["text"] == (
        f"{tiny.NAMES[0]} is no longer named when asked for: 100.0 % → 0.0 % of the answers about 24 pictures; 75.0 % name another, "
        "0.0 % say that they do not know."
    )
    write_report(made, show_forget=False)
    assert "Bo Hill" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["said"] == [
        {"question": "Who is this?", "role": "forget", "expected": "Ada Fox", "before": "Ada Fox", "after": "Bo Hill"}
    ]


def test_rows_are_in_per_cent_and_points(tmp_path):
    one = report(tmp_path)
    forget, retain = metric_rows(one.before, one.after)
    assert (forget["before"], forget["after"], forget["change"], forget["kind"]) == (
        "100.0 %",
        "0.0 %",
        "-100.0",
        "good",
    )
    assert (retain["change"], retain["kind"], retain["interval"]) == ("-2.0", "worse", "60.0 – 100.0")


def test_small_numbers_keep_three_digits_and_rates_one_decimal():
    before = {
        "quality/kid": Metric(0.000123, 9, better="lower"),
        "retain/top1": Metric(0.00004, 9, 0.0, 0.003, "higher"),
    }
    after = {"quality/kid": Metric(0.00201, 9, 0.0, 0.0304, "lower"), "retain/top1": Metric(0.0, 9, 0.0, 0.3, "higher")}
    kid, top1 = metric_rows(before, after)
    assert (kid["before"], kid["after"], kid["change"]) == ("0.000123", "0.00201", "+0.00189")
    assert kid["interval"] == "0 – 0.030"
    assert (top1["before"], top1["after"], top1["interval"]) == ("0.0 %", "0.0 %", "0.0 – 30.0")


@pytest.mark.parametrize("text", ["<b>Ada</b>", 'a"b'])
def test_names_are_escaped(tmp_path, text):
    from dataclasses import replace

    one = report(tmp_path)
    task = replace(one.task, names=(text,), forget={text: one.task.forget["Ada Fox"]})
    write_report(replace(one, task=task), show_forget=False)
    assert text not in (tmp_path / "report.html").read_text().split("Versions and fingerprints")[0]


def test_evidence_is_grouped_by_its_prefix_and_the_main_metrics_come_first(tmp_path):
    one = report(tmp_path)
    more = {"mia/logistic_auc": Metric(0.8, 90, 0.7, 0.9, "lower", "read me"), "forget/cosine": Metric(0.2, 2),
            "mia/release_auc": Metric(0.9, 99), "new/thing": Metric(0.5, 3, better="neither")}  # fmt: skip
    made = replace(
        one, before={**one.before, **more}, after={**one.after, **more, "new/thing": Metric(0.7, 3, better="neither")}
    )
    rows = metric_rows(made.before, made.after)
    groups = grouped(rows)
    assert [(title, [row["name"] for row in some]) for title, some in groups] == [
        ("", ["forget/top1", "retain/top1", "forget/cosine"]),
        ("Membership inference: were the forget pairs trained on?", ["mia/logistic_auc", "mia/release_auc"]),
        ("new", ["new/thing"]),
    ]
    assert rows[2]["after"] == "0.800"  # an AUC is no per cent
    assert groups[2][1][0]["kind"] == "flat"  # neither better nor worse
    write_report(made, show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert page.index("retain/top1") < page.index("<h3>Membership inference") < page.index("read me")

from dataclasses import replace

import pytest
import tiny
from report import finished

from muwa.report.page import write_report
from muwa.report.record import results
from muwa.report.requests import request_rows
from muwa.report.verdicts import verdicts
from muwa.types.edit import Move
from muwa.types.metric import Metric, NameRate
from muwa.types.request import Request
from muwa.unlearning import objective

EARLIER = replace(finished.FIRST_GUESS, role="earlier")
MOVE = Move("Bo Hill", "text", "visual.proj", 1.0, 0.1)
BO = Request(
    "ab" * 32, "b", "b", (), "identity", ("Bo Hill",), "muwa.methods.slug", (MOVE,), ("visual.proj",)
)
BOTH = replace(
    BO, sha256="cd" * 32, names=("Cy Reed", "Di Moss"), made_on=(BO.sha256,), when="2026-01-02T03:04:05"
)


def metric(**rates):
    by_name = {name.replace("_", " "): NameRate(value, 4) for name, value in rates.items()}
    mean = sum(rates.values()) / len(rates)
    return Metric(mean, 4 * len(rates), max(0, mean - 0.3), min(1, mean + 0.3), EARLIER, by_name=by_name)


def report(folder, after):
    made = finished.report(folder)
    before = metric(Bo_Hill=0.0, Cy_Reed=0.0, Di_Moss=0.5)
    return replace(
        made,
        before={**made.before, "earlier/top1": before},
        after={**made.after, "earlier/top1": after},
        requests=(BO, BOTH),
    )


def test_each_request_has_the_mean_rate_of_its_names(tmp_path):
    rows = request_rows(report(tmp_path, metric(Bo_Hill=0.25, Cy_Reed=0.0, Di_Moss=1.0)))
    assert [row["names"] for row in rows] == [["Bo Hill"], ["Cy Reed", "Di Moss"]]
    assert rows[0]["recognised"] == {"earlier/top1": {"before": 0.0, "after": 0.25}}
    assert rows[1]["recognised"] == {"earlier/top1": {"before": 0.25, "after": 0.5}}
    assert (rows[1]["made_on"], rows[0]["layers"]) == ([BO.sha256], ["visual.proj"])


def test_the_record_and_the_page_tell_them(tmp_path):
    made = report(tmp_path, metric(Bo_Hill=0.0, Cy_Reed=0.0, Di_Moss=0.0))
    assert results(made)["requests"] == request_rows(made)
    write_report(made, show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Requests so far</h2>" in page
    assert "<td>Cy Reed, Di Moss</td>" in page
    assert "25.0 % → 0.0 %" in page
    plain = tmp_path / "plain"
    write_report(finished.report(plain), show_forget=False)
    assert "Requests so far" not in (plain / "report.html").read_text()


@pytest.mark.parametrize(("rate", "kind", "said"), [
    (0.0, "good", "Forgotten so far (Bo Hill, Cy Reed, Di Moss): earlier requests stay forgotten (the model's first guess): "
     "16.7 → 0 % of 12 held-out images (95 % interval 0 to 30 %)."),
    (0.5, "bad", "earlier requests are not all forgotten (the model's first guess): 16.7 → 50 % of 12"),
])  # fmt: skip
def test_a_sentence_says_whether_all_is_forgotten_so_far(tmp_path, rate, kind, said):
    found = verdicts(report(tmp_path, metric(Bo_Hill=rate, Cy_Reed=rate, Di_Moss=rate)))
    (mine,) = [one for one in found if "Forgotten so far" in one["text"]]
    assert mine["kind"] == kind
    assert said in mine["text"]


def test_the_objective_counts_an_earlier_name_that_comes_back():
    before, after = {"a": metric(Bo_Hill=0.25)}, {"a": metric(Bo_Hill=0.75)}
    assert objective(before, after) == 0.5
    assert objective(after, before) == 0


def test_values_before_that_are_those_of_the_shipped_weights_give_no_warning(tmp_path):
    known = {"forget/top1": Metric(0.0, 2, 0, 1, finished.FIRST_GUESS)}
    made = replace(finished.report(tmp_path), before=known, after=known)
    assert any("hardly knows" in one["text"] for one in verdicts(made))
    unknown = replace(made, provenance={"base": None})
    assert not any("hardly knows" in one["text"] for one in verdicts(unknown))
    assert tiny.NAMES[0] in verdicts(unknown)[0]["text"]

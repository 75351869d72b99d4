import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from report import test_terminal, test_verdicts
from report.finished import ANSWERED, FIRST_GUESS, UA, rates_only, report

from muwa.report import figures
from muwa.report.page import grouped, metric_rows, step_heading, write_report
from muwa.report.terminal import print_outcome
from muwa.types.edit import Edit, Move
from muwa.types.example import Example
from muwa.types.metric import Metric, Reading, Sample
from muwa.types.search import ALL_WEIGHTS, BOTH_TOWERS, RELATIVE, Candidate


def with_unit(made, unit, **changed):
    """The run with another unit of its steps."""
    (search,) = made.edit.searches
    rows = tuple(replace(row, step_unit=unit, **changed) for row in search.trace)
    return replace(made, edit=replace(made.edit, searches=(replace(search, trace=rows),)))


def test_the_page_stands_alone_and_is_whole(tmp_path):
    write_report(report(tmp_path), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert "Ada Fox is no longer the model&#39;s first guess: 100 → 0 % of 2 held-out images" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.rstrip().endswith("</html>")
    for name in ("pareto", "trace", "metrics", "similarity"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
    assert not list(tmp_path.rglob("*.draft*"))


def test_the_page_says_its_folder_and_what_it_was_measured_on(tmp_path):
    """Held-out images are those of the data set; a measure may look at generated images, or ask questions."""
    made = rates_only(report(tmp_path))
    write_report(made, show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert f"folder <code>{'/'.join(tmp_path.parts[-3:])}</code>" in page
    assert "utility: held-out images of the data set, in no other set</dd>" in page
    assert "<dt>measured on</dt><dd>2 to 7 held-out images, by metric</dd>" in page
    rates = {
        "forget/answered": Metric(0.0, 8, reading=ANSWERED),
        "retain/answered": Metric(1.0, 400, reading=replace(ANSWERED, role="kept")),
        "forget/ua": Metric(1.0, 20, reading=UA),
        "forget/cosine": Metric(0.1, 9),
    }
    write_report(replace(made, before=rates, after=rates), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert "<dt>measured on</dt><dd>8 to 400 images asked about, by metric</dd>" in page
    assert "<dt>and</dt><dd>20 generated images</dd>" in page
    assert "held-out images, by metric" not in page


def test_warnings_of_the_run_stand_on_the_page(tmp_path):
    made = rates_only(report(tmp_path))
    write_report(made, show_forget=False)
    assert "Warning:" not in (tmp_path / "report.html").read_text()
    about = {**made.provenance, "warnings": ["trained with <QuickGELU>"]}
    write_report(replace(made, provenance=about), show_forget=False)
    assert "Warning: trained with &lt;QuickGELU&gt;</p>" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["provenance"]["warnings"] == about["warnings"]


def test_the_page_of_a_method_that_searches_no_layer_shows_its_steps_and_no_empty_section(tmp_path):
    made = with_unit(
        report(tmp_path), "learning rate", candidate=Candidate({"": ALL_WEIGHTS}, BOTH_TOWERS), step=1e-4
    )
    search = replace(made.edit.searches[0], rule="best", granularity=ALL_WEIGHTS, scores={}, front=())
    moves = (Move("Ada Fox", BOTH_TOWERS, ALL_WEIGHTS, 1e-4, 0.2),)
    write_report(replace(made, edit=Edit({}, moves, (search,))), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert "Which layers could be edited" not in page
    assert "How the step was found" in page
    assert page.count('class="chosen"') == 1  # both rows have the learning rate as their step
    assert "both all weights" not in page
    assert page.count('<th scope="col" class="num">learning rate</th>') == 2  # of the moves, and of the steps
    assert "λ" not in page
    assert sorted(path.stem for path in (tmp_path / "figures").glob("*.png")) == [
        "metrics",
        "similarity",
        "trace",
    ]


def test_steps_have_the_unit_of_their_search_and_moves_have_lambda(tmp_path):
    made = report(tmp_path)
    assert step_heading(made.edit) == step_heading(with_unit(made, RELATIVE).edit) == "step λ"
    assert step_heading(with_unit(made, "strength").edit) == "strength"
    assert step_heading(Edit({}, made.edit.moves)) == "step"
    write_report(with_unit(made, RELATIVE), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert (
        page.count('<th scope="col" class="num">step λ</th>')
        == page.count('<th scope="col" class="num">step, in ‖θ‖ / ‖g_f‖</th>')
        == 1
    )


def test_two_searches_have_a_figure_and_a_table_each(tmp_path):
    made = report(tmp_path)
    (search,) = made.edit.searches
    both = (search, replace(search, concept="Bo Hill"))
    write_report(replace(made, edit=replace(made.edit, searches=both)), show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="chosen"') == 2
    assert page.index("<h3>Ada Fox</h3>") < page.index("<h3>Bo Hill</h3>")
    assert (
        page.count("<figcaption>Ada Fox</figcaption>") == page.count("<figcaption>Bo Hill</figcaption>") == 2
    )
    names = sorted(path.stem for path in (tmp_path / "figures").glob("*.png"))
    assert names == ["metrics", "pareto_1", "pareto_2", "similarity", "trace_1", "trace_2"]


def test_answers_are_in_the_page_and_the_results(tmp_path):
    said = (Example("forget", "Who is this?", "Ada Fox", "Ada Fox", "Bo Hill"),)
    metrics = {"forget/answered": Metric(1.0, 24, reading=ANSWERED)}
    made = replace(rates_only(report(tmp_path)), before=metrics, after=metrics, examples=said)
    write_report(made, show_forget=False)
    assert '<td class="wrap good">Bo Hill</td>' in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["said"] == [
        {
            "question": "Who is this?",
            "role": "forget",
            "expected": "Ada Fox",
            "before": "Ada Fox",
            "after": "Bo Hill",
        }
    ]
    assert not (tmp_path / "figures" / "examples.png").exists()


@pytest.mark.parametrize("show", [False, True])
def test_images_of_the_forget_set_are_shown_only_when_asked_for(tmp_path, show):
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    made = replace(
        rates_only(report(tmp_path)), examples=(Example("forget", "Ada Fox", "Ada Fox", image, image),)
    )
    write_report(made, show_forget=show)
    page = (tmp_path / "report.html").read_text()
    assert (tmp_path / "figures" / "examples.png").is_file()
    assert "Generated images" in page
    assert page.count("held-out image of the forget set") == (2 if show else 0)  # `tiny.task` has two
    assert ("do not pass this page on" in page) == show


def test_rows_are_in_per_cent_and_points(tmp_path):
    one = report(tmp_path)
    forget, retain = metric_rows(one.before, one.after, {"forget/top1": "good"})
    assert (forget["before"], forget["after"], forget["change"], forget["kind"]) == (
        "100.0 %",
        "0.0 %",
        "-100.0",
        "good",
    )
    assert (retain["change"], retain["kind"], retain["interval"]) == ("-2.0", "flat", "60.0 to 100.0")
    assert (forget["judged"], retain["judged"]) == ("good", "")
    assert (
        retain["change_interval"] == "-31.7 to +30.3"
    )  # sqrt(28^2 + 10^2) below, sqrt(12^2 + 30^2) above -2


def test_small_numbers_keep_three_digits_and_rates_one_decimal():
    distance, rate = Reading("", "lower", "distance"), Reading("", "higher")
    before = {"a": Metric(0.000123, 9, reading=distance), "b": Metric(0.00004, 9, 0.0, 0.003, rate)}
    after = {"a": Metric(0.00201, 9, 0.0, 0.0304, distance), "b": Metric(0.0, 9, 0.0, 0.3, rate)}
    kid, top1 = metric_rows(before, after, {})
    assert (kid["before"], kid["after"], kid["change"]) == ("0.000123", "0.00201", "+0.00189")
    assert kid["interval"] == "0 to 0.030"
    assert (top1["before"], top1["after"], top1["interval"]) == ("0.0 %", "0.0 %", "0.0 to 30.0")
    assert (top1["change"], top1["kind"]) == ("0.0", "flat")  # -0.004 points


def test_a_change_has_a_colour_only_if_it_is_one():
    """90 to 60 %, each plus and minus 10: -30 points, -44 to -16. Plus and minus 30: -72 to +12."""
    for half, kind in ((0.1, "worse"), (0.3, "flat")):
        before, after = (Metric(v, 9, v - half, v + half, Reading("", "higher")) for v in (0.9, 0.6))
        (row,) = metric_rows({"a": before}, {"a": after}, {})
        assert (row["change"], row["kind"]) == ("-30.0", kind)


def test_a_value_that_was_cut_off_is_a_lower_bound():
    steps = Reading("steps of relearning", "higher", "steps")
    (row,) = metric_rows(
        {"a": Metric(0, 4, reading=steps)}, {"a": Metric(100, 4, reading=steps, capped=True)}, {}
    )
    assert (row["before"], row["after"], row["change"]) == ("0", "> 100", "+100")


class Page(HTMLParser):
    """A page as its elements: (tag, attributes, text that follows the start tag)."""

    def __init__(self, path):
        super().__init__()
        self.elements = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2] += data

    def all(self, tag):
        return [(attributes, text.strip()) for name, attributes, text in self.elements if name == tag]


def test_names_and_requests_are_text_everywhere_on_the_page(tmp_path):
    text = """<b>Ada</b> a"b </title><script>x</script> ' onload='x"""
    one = report(tmp_path)
    write_report(one, show_forget=False)
    plain = Page(tmp_path / "report.html")
    task = replace(one.task, names=(text,), forget={text: one.task.forget["Ada Fox"]})
    search = replace(one.edit.searches[0], concept=text)
    moves = (replace(one.edit.moves[0], concept=text),)
    asked = {"id": text, "operator": text, "date": text, "basis": text}
    edit = replace(one.edit, searches=(search,), moves=moves)
    write_report(replace(one, task=task, edit=edit, request=asked), show_forget=False)
    page = Page(tmp_path / "report.html")
    assert page.all("h1") == [({}, f"Forgetting {text}")]
    assert [tag for tag, *_ in page.elements] == [tag for tag, *_ in plain.elements]
    assert [sorted(found) for _, found, _ in page.elements] == [
        sorted(found) for _, found, _ in plain.elements
    ]


def test_nothing_on_the_page_comes_from_outside_and_tables_and_figures_say_what_they_are(tmp_path):
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    shown = (Example("retain", "a photo of Bo Hill", "Bo Hill", image, image),)
    write_report(replace(report(tmp_path), examples=shown), show_forget=False)
    page = Page(tmp_path / "report.html")
    assert not page.all("link")
    assert not page.all("iframe")
    for tag in ("img", "script", "image"):
        for found, _ in page.all(tag):
            assert (found.get("src") or found.get("href") or "data:").startswith("data:")
    assert all(found.get("scope") in ("col", "row") for found, _ in page.all("th"))
    figures_of_page = [found for found, _ in page.all("svg")]
    assert [one["role"] for one in figures_of_page] == ["img"] * 4
    labels = [one["aria-label"] for one in figures_of_page]
    assert labels[0].startswith("Bars of rates, before to after the edit: forget/top1 100 to 0 %")
    assert len(set(labels)) == 4
    assert [found["alt"] for found, _ in page.all("img")] == [
        "before the edit: a photo of Bo Hill",
        "after the edit: a photo of Bo Hill",
    ]
    every = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(every) == len(set(every))


def test_the_card_is_a_file_and_a_section(tmp_path):
    asked = {"id": "17", "operator": "Example *Ltd*", "date": None, "basis": None}
    write_report(replace(report(tmp_path), request=asked, edited={"patch": "d" * 64}), show_forget=False)
    card = (tmp_path / "card.md").read_text()
    assert card.startswith("# Unlearning card: ")
    assert "| Carried out by | Example \\*Ltd\\* |" in card
    page = Page(tmp_path / "report.html")
    cells = [text for _, text in page.all("td")]
    assert cells[cells.index("Carried out by") + 1] == "Example *Ltd*"
    assert [text for _, text in page.all("h3")][-6:] == [
        "Known limits",
        "The request",
        "What was measured",
        "What this card cannot know",
        "How to check it, how to undo it",
        "Technical annex",
    ]
    assert not page.all("a")


@pytest.mark.parametrize(("forget", "kind"), [(0.0, "unsure"), (1.0, "bad")])
def test_the_box_has_the_colour_of_the_whole_verdict(tmp_path, forget, kind):
    """2 forget images and 7 others are too few; a target that is still there is a failure."""
    made = rates_only(report(tmp_path, after=forget))
    after = {
        **made.after,
        "forget/top1": Metric(forget, 2, forget * 0.3, 0.7, made.after["forget/top1"].reading),
    }
    write_report(replace(made, after=after), show_forget=False)
    page = Page(tmp_path / "report.html")
    assert [found["class"] for found, _ in page.all("section") if "verdict" in found.get("class", "")] == [
        f"verdict {kind}"
    ]
    assert json.loads((tmp_path / "results.json").read_text())["verdict"]["kind"] == kind


def test_evidence_is_grouped_by_its_section_and_the_main_metrics_come_first(tmp_path):
    one = rates_only(report(tmp_path))
    mia = Reading(
        "read me", "lower", "auc", section="Membership inference: were the forget pairs trained on?"
    )
    new = Reading("new", "neither", section="New")
    more = {
        "mia/logistic_auc": Metric(0.8, 90, 0.7, 0.9, mia),
        "forget/cosine": Metric(0.2, 2, reading=Reading("cosine", "lower", "cosine")),
        "mia/release_auc": Metric(0.9, 99, reading=mia),
        "new/thing": Metric(0.5, 3, reading=new),
    }
    later = {**more, "new/thing": Metric(0.7, 3, reading=new)}
    made = replace(one, before={**one.before, **more}, after={**one.after, **later})
    rows = metric_rows(made.before, made.after, {})
    groups = grouped(rows)
    assert [(title, [row["name"] for row in some]) for title, some in groups] == [
        ("", ["forget/top1", "retain/top1", "forget/cosine"]),
        (mia.section, ["mia/logistic_auc", "mia/release_auc"]),
        ("New", ["new/thing"]),
    ]
    assert rows[2]["after"] == "0.800"  # an AUC is no per cent
    assert groups[2][1][0]["kind"] == "flat"  # neither better nor worse
    write_report(made, show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert page.index("retain/top1") < page.index("<h3>Membership inference") < page.index("read me")


def test_a_search_by_gain_shows_gains_in_place_of_the_front(tmp_path):
    made = report(tmp_path)
    (search,) = made.edit.searches
    scores = {name: replace(score, gain=2.5) for name, score in search.scores.items()}
    write_report(
        replace(made, edit=replace(made.edit, searches=(replace(search, scores=scores),))), show_forget=False
    )
    page = (tmp_path / "report.html").read_text()
    assert "The gain of a layer is how much" in page
    assert "The front as a table" not in page
    names = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert "gains" in names
    assert "pareto" not in names
    assert json.loads((tmp_path / "results.json").read_text())["scores"][0]["gain"] == 2.5


def test_a_failing_figure_costs_neither_the_results_nor_the_page(tmp_path, monkeypatch, caplog):
    def broken(*arguments):
        assert (tmp_path / "results.json").is_file(), "results are written before any figure"
        raise RuntimeError("out of ink")

    monkeypatch.setattr(figures, "bars", broken)
    write_report(report(tmp_path), show_forget=False)
    assert "the figure metrics.png could not be drawn: RuntimeError: out of ink" in caplog.text
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "figures" / "trace.png").is_file()
    assert not (tmp_path / "figures" / "metrics.png").exists()


def test_samples_are_a_table_of_changes_and_a_list_and_their_prompts_are_text(tmp_path):
    def detected(hit, prompt="<b>a</b> fox"):
        rows = [Sample(prompt if i == 0 else f"prompt {i}", i, 7.5, "fox", 0.25, hit) for i in range(301)]
        return {"forget/detected": Metric(float(hit), 301, 0.0, 1.0, samples=tuple(rows))}

    made = replace(
        rates_only(report(tmp_path)), before=detected(True), after=detected(False, "x <b>a</b> fox")
    )
    write_report(made, show_forget=False)
    page = (tmp_path / "report.html").read_text()
    assert (
        '<td class="num">-100.0 (-100.0 – -98.2)</td><td class="num">301</td><td class="num">0</td>' in page
    )
    assert "&lt;b&gt;a&lt;/b&gt; fox<br>after: x &lt;b&gt;a&lt;/b&gt; fox</td>" in page
    assert "<b>a</b>" not in page
    assert "the first 300 (results.json has all)" in page
    assert ("prompt 299<" in page, "prompt 300<" in page) == (True, False)
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["samples"]) == 301
    (row,) = found["detections"]
    assert (row["concept"], row["lost"], row["new"]) == ("fox", 301, 0)


@pytest.mark.parametrize(
    ("left", "lost", "words"),
    [
        (0, 0, ("forgotten", "kept")),
        (18, 30, ("still recognised", "not kept")),
        (0, 5, ("forgotten", "not shown")),
    ],
)
def test_console_page_and_card_say_the_same_words(tmp_path, capsys, left, lost, words):
    """`left` of 20 images are still recognised; `lost` of 100 others are not any more."""
    kept, kept_after = test_verdicts.paired(100, 100, lost)
    readings = (test_verdicts.rate(20, 20, FIRST_GUESS), test_verdicts.rate(left, 20, FIRST_GUESS))
    before, after = (
        {"forget/top1": one, "retain/top1": two}
        for one, two in zip(readings, (kept, kept_after), strict=True)
    )
    made = replace(rates_only(report(tmp_path)), before=before, after=after)
    write_report(made, show_forget=False)
    print_outcome(made)
    console = test_terminal.rows(capsys.readouterr().out)
    assert tuple(console[name][-1] for name in before) == words
    page = Page(tmp_path / "report.html")
    said = [text for found, text in page.all("td") if found.get("data-label") == "verdict"]
    assert tuple(said) == words
    assert words[1].capitalize() in [text for found, text in page.all("span") if found.get("class") == "tag"]
    lines = (tmp_path / "card.md").read_text().splitlines()
    judged = [
        line
        for line in lines
        if "the model's first guess |" in line or line.startswith("| The other names |")
    ]
    assert tuple(line.split(" | ")[-1].strip(" |") for line in judged) == words

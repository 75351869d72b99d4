from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import image
from matplotlib.text import Text
from report.finished import OTHERS, report

from muwa.report import figures, samples
from muwa.report.runs import Variant
from muwa.types.example import Example
from muwa.types.metric import Metric, Reading
from muwa.types.search import Candidate


def pixels(figure, path):
    figures.save(figure, path)
    return image.imread(path)


def test_each_figure_shows_its_numbers(tmp_path):
    search = report(tmp_path).edit.searches[0]
    blank, _ = figures.blank(5.2, 4.4)
    empty = pixels(blank, tmp_path / "blank.png")
    drawn = pixels(figures.pareto(search), tmp_path / "pareto.png")
    assert drawn.shape == empty.shape
    assert np.abs(drawn - empty).mean() > 1e-3
    assert "visual.proj" in [text.get_text() for text in figures.pareto(search).axes[0].texts] or any(
        "proj" in text.get_text() for text in figures.pareto(search).axes[0].texts
    )


def test_the_trace_has_a_line_a_rate_and_marks_the_choice(tmp_path):
    axis = figures.trace(report(tmp_path).edit.searches[0]).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert list(lines["forget top-5"]) == [50, 0]
    assert list(lines["retain top-1"]) == [90, 90]
    assert list(lines["chosen step"]) == [0, 1]


def test_a_search_of_other_rates_shows_what_was_forgotten_and_kept(tmp_path):
    (search,) = report(tmp_path).edit.searches
    rows = tuple(replace(row, metrics={"heard": 0.3}) for row in search.trace)
    axis = figures.trace(replace(search, trace=rows, chosen=None)).axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in axis.lines} == {
        "forget": [50, 0],
        "kept": [85, 85],
    }


def test_a_candidate_of_two_encoders_is_ringed_in_both(tmp_path):
    (search,) = report(tmp_path).edit.searches
    (score,) = search.scores.values()
    names = ("blocks.1.weight", "text_encoder_2/blocks.2.weight")
    scores = {name: replace(score, tower="text") for name in (*names, "other")}
    candidate = Candidate(
        {"text_encoder": "blocks.1.weight", "text_encoder_2": "blocks.2.weight"}, "text", names
    )
    rows = tuple(replace(row, candidate=candidate) for row in search.trace)
    both = replace(search, scores=scores, front=tuple(scores), trace=rows)
    panel = figures.pareto(both).axes[0]
    named = {text.get_text(): text.get_color() for text in panel.texts}
    assert named == {"1": figures.RED, "text_encoder_2/2": figures.RED, "other": "#333333"}
    assert len(panel.collections[-1].get_offsets()) == 2  # the rings
    assert figures.trace(both).axes[0].get_title(loc="left") == "text 1 + text_encoder_2/2"


def test_variants_share_a_colour_by_method_and_a_shape_by_their_last_setting():
    runs = {
        Variant("slug", ("pick=a", "k=[1, 2]")): ([0.0, 50.0], [-1.0, -3.0]),
        Variant("slug", ("pick=a", "k=2")): ([0.0], [-4.0]),
        Variant("ga"): ([100.0], [0.0]),
    }
    figure = figures.kept_against_forgotten(runs, "forget/top5")
    lines = {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    assert list(lines) == ["slug (pick=a)", "ga", "k=[1, 2]", "k=2"]
    assert list(lines["slug (pick=a)"].get_xdata()) == [25, 0]
    assert list(lines["slug (pick=a)"].get_ydata()) == [-2, -4]
    assert lines["k=[1, 2]"].get_marker() != lines["k=2"].get_marker()
    wide = figure.axes[0].collections[0].get_segments()[0][:, 0]
    assert wide == pytest.approx([0, 25 + 1250**0.5])  # the bar of 0 and 50 ends at 0, where accuracies do


def test_bars_are_the_metrics_in_per_cent(tmp_path):
    one = report(tmp_path)
    axis = figures.bars(one.before, one.after).axes[0]
    assert [round(bar.get_width(), 1) for bar in axis.patches] == [100.0, 90.0, 0.0, 88.0]


def test_the_matrices_share_one_scale(tmp_path):
    figure = figures.similarity(["a", "b"], [[0.5, 0.1], [0.1, 0.5]], [[0.2, 0.1], [0.1, 0.5]], ["a"])
    scales = {axis.images[0].get_clim() for axis in figure.axes[:2]}
    assert scales == {(0.1, 0.5)}
    assert figure.axes[0].get_yticklabels()[0].get_color() == figures.RED


@pytest.mark.parametrize(("name", "label"), [
    ("visual.transformer.resblocks.3.attn.in_proj_weight", "3.attn.in_proj"), ("visual.proj", "visual.proj"),
    ("vision_model.encoder.layers.9.self_attn.q_proj.weight", "9.self_attn.q_proj"), ("text_projection", "text_projection"),
])  # fmt: skip
def test_labels_are_short(name, label):
    assert figures.short(name) == label


def test_only_rates_have_bars(tmp_path):
    cosine = {"forget/cosine": Metric(0.2, 2, reading=Reading("", "lower", "cosine"))}
    assert figures.rates_of({**report(tmp_path).before, **cosine}) == ["forget/top1", "retain/top1"]


def test_of_many_rates_the_bars_show_those_under_the_first_heading(tmp_path):
    one = report(tmp_path)
    many = {
        f"forget/{i}": Metric(0.5, 4, reading=replace(OTHERS, section="In altered images")) for i in range(20)
    }
    axis = figures.bars({**one.before, **many}, {**one.after, **many}).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "forget/top1  (n=2)",
        "retain/top1  (n=7)",
    ]


def test_the_layers_of_largest_gain_are_bars_and_the_edited_one_is_named_in_red(tmp_path):
    """Twelve of fourteen: layer0 has no gain, layer1 and layer2 are among the last, "none" was not scored."""
    (search,) = report(tmp_path).edit.searches
    (score,) = search.scores.values()
    scores = {f"layer{i}": replace(score, gain=float(i)) for i in range(14)}
    scores |= {"visual.proj": replace(score, gain=20.0), "none": replace(score, gain=None)}
    axis = figures.gains(replace(search, scores=scores)).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [20.0, *range(13, 2, -1)]
    assert [bar.get_alpha() for bar in axis.patches] == [1.0, *[0.35] * 11]  # solid: searched
    colours = [label.get_color() for label in axis.get_yticklabels()]
    assert colours == [figures.RED, *["#333333"] * 11]


ODD = "$^$ a_b \\frac{1} {x} $"


def test_names_are_never_formulas(tmp_path):
    """matplotlib would fail on "$^$", and typeset "$a_b$"; each text of each figure is shown as it is."""
    one = report(tmp_path)
    (search,) = one.edit.searches
    (score,) = search.scores.values()
    candidate = Candidate({"": ODD}, "vision")
    rows = tuple(replace(row, candidate=candidate) for row in search.trace)
    odd = replace(search, scores={ODD: replace(score, gain=1.0)}, front=(ODD,), trace=rows)
    metrics = {ODD: Metric(0.5, 4, reading=OTHERS)}
    made = [
        figures.pareto(odd),
        figures.gains(odd),
        figures.trace(odd),
        figures.similarity([ODD, "b"], [[0.5, 0.1], [0.1, 0.5]], [[0.2, 0.1], [0.1, 0.5]], [ODD]),
        figures.bars(metrics, metrics),
        figures.kept_against_forgotten({Variant(ODD, (ODD, ODD)): ([0.0], [1.0])}, ODD),
        figures.harm([ODD], [ODD, "b"], np.array([[np.nan, 1.0]]), np.array([[True, False]]), ODD),
        samples.sheet((Example("forget", ODD, ODD, tiny_image(), tiny_image()),), show_forget=True),
    ]
    for figure in made:
        figures.png(figure)
        shown = {text for text in figure.findobj(Text) if "$^$" in text.get_text()}
        assert shown
        assert not any(text.get_parse_math() for text in shown)


def tiny_image():
    return torch.zeros(3, 4, 4, dtype=torch.uint8)


def test_the_numbers_of_a_logarithmic_axis_are_still_typeset(tmp_path):
    """10^-2 stands as 10 with an exponent: its labels keep their markup."""
    figure = figures.pareto(report(tmp_path).edit.searches[0])
    figures.png(figure)
    labels = [tick.label1 for tick in figure.axes[0].yaxis.get_major_ticks()]
    assert labels
    assert all(label.get_parse_math() for label in labels)


def test_a_figure_that_fails_is_left_out_with_a_warning(tmp_path, caplog):
    def broken():
        raise ValueError("no such font")

    (tmp_path / "a.png").write_bytes(b"of an earlier attempt")
    assert figures.try_save(broken, tmp_path / "a.png") is None
    assert not (tmp_path / "a.png").exists()
    assert "the figure a.png could not be drawn: ValueError: no such font" in caplog.text
    blank, _ = figures.blank(2, 2)
    assert figures.try_save(lambda: blank, tmp_path / "b.png") is blank
    assert (tmp_path / "b.png").is_file()

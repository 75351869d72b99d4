"""Who harms whom, counted by hand from what four runs measured."""

import csv
import itertools

import numpy as np
import pytest
from report.finished import FIRST_GUESS, OTHERS, UA

from muwa.report import figures
from muwa.report.runs import SweptRun
from muwa.report.tables import harm
from muwa.types.metric import Metric, NameRate

NAMES = ("Ada Fox", "Bo Hill", "Cy Oak")


def run(forgotten, after, *, kind="identity", reading=FIRST_GUESS, own=(1.0, 0.0), method="slug", seed="0"):
    """A run that forgot one name; `after`: name -> its accuracy after the edit, 1 before, of 8 images."""
    before = {name: NameRate(1.0, 8) for name in after}
    rates = {name: NameRate(rate, 8) for name, rate in after.items()}
    metrics = {
        when: {
            "forget/x": Metric(rate, 8, reading=reading, by_name={forgotten: NameRate(rate, 8)}).record(),
            "retain/x": Metric(0.9, 16, reading=OTHERS, by_name=others).record(),
        }
        for when, rate, others in (("before", own[0], before), ("after", own[1], rates))
    }
    results = {
        "metrics": metrics,
        "task": {"kind": kind, "names": [forgotten]},
        "provenance": {"method": method},
    }
    return SweptRun({"task.identity": forgotten, "seed": seed}, results)


RUNS = [
    run("Ada Fox", {"Bo Hill": 0.75, "Cy Oak": 1.0}),
    run("Bo Hill", {"Ada Fox": 0.875, "Cy Oak": 0.5}, own=(1.0, 0.25)),
    run("Bo Hill", {"Ada Fox": 0.625, "Cy Oak": 0.5}, own=(1.0, 0.25), seed="1"),
]


def test_the_matrix_by_hand():
    (made,) = harm.harms(RUNS)
    assert made.names == ("Ada Fox", "Bo Hill", "Cy Oak")  # the forgotten first
    points = {row: {name: one.points for name, one in changes.items()} for row, changes in made.rows.items()}
    assert points == {
        "Ada Fox": {"Ada Fox": -100, "Bo Hill": -25, "Cy Oak": 0},
        "Bo Hill": {"Bo Hill": -75, "Ada Fox": -25, "Cy Oak": -50},  # the mean of two seeds
    }
    assert {name for row in made.rows.values() for name in row if row[name].own} == {"Ada Fox", "Bo Hill"}
    assert made.metric == "retain/x"


def test_the_most_harmed_in_words():
    (made,) = harm.harms(RUNS)
    assert harm.sentences(made)[0] == "Forgetting Bo Hill costs Cy Oak 50.0 points (100.0 % → 50.0 %, n = 8)."
    assert len(harm.sentences(made)) == 3
    untouched = [run(name, dict.fromkeys(set(NAMES) - {name}, 1.0)) for name in NAMES]
    assert harm.sentences(harm.harms(untouched)[0]) == ["No other name lost accuracy."]


def test_a_forget_rate_of_which_higher_is_better_is_turned_round():
    """UA 0.1 -> 0.95: the name was generated in 90 % of the images, and is in 5 %."""
    runs = [run(name, {"Cy Oak": 1.0}, reading=UA, own=(0.1, 0.95)) for name in NAMES[:2]]
    (made,) = harm.harms(runs)
    assert made.rows["Ada Fox"]["Ada Fox"].points == pytest.approx(-85)


def test_methods_and_kinds_have_a_matrix_each():
    runs = [run(name, {"Cy Oak": 0.5}, method=method) for method in ("slug", "ga") for name in NAMES[:2]]
    runs += [run(name, {"Neon": 1.0}, kind="style") for name in ("Sketch", "Mosaic")]
    assert [made.title for made in harm.harms(runs)] == ["slug, identity", "ga, identity", "slug, style"]


def test_one_request_or_results_without_names_give_no_matrix():
    assert harm.harms(RUNS)
    assert not harm.harms(RUNS[1:])  # two seeds of one name
    old = [run(name, {"Cy Oak": 1.0}) for name in NAMES[:2]]
    for metrics in (one.results["metrics"][when] for one in old for when in ("before", "after")):
        for metric in metrics.values():
            del metric["by_name"]
    assert not harm.harms(old)
    assert not harm.harms([])


def test_the_files(tmp_path):
    odd = [run("=Ada", {"@Bo": 0.5}), run("@Bo", {"=Ada": 1.0, "-Cy": 0.75})]
    (tmp_path / "harm_2.png").write_bytes(b"of a time with more methods")
    harm.write(tmp_path, harm.harms(odd))
    assert not (tmp_path / "harm_2.png").exists()
    matrix = list(csv.reader((tmp_path / "harm.csv").read_text().splitlines()))
    assert matrix == [
        ["method", "forgotten", "'=Ada", "'@Bo", "'-Cy"],
        ["slug", "'=Ada", "-100.0", "-50.0", ""],
        ["slug", "'@Bo", "0.0", "-100.0", "-25.0"],
    ]
    pairs = list(csv.reader((tmp_path / "harm_pairs.csv").read_text().splitlines()))
    assert pairs[0] == ["method", "forgotten", "name", "before", "after", "change, points", "n"]
    assert ["slug", "'@Bo", "'-Cy", "1.0", "0.75", "-25.0", "8"] in pairs
    assert (tmp_path / "harm.png").stat().st_size > 5000


def test_the_figure_is_centred_at_0_and_shows_the_forgotten_apart():
    axis = harm.figure(harm.harms(RUNS)[0]).axes[0]
    (image,) = axis.images
    assert image.get_clim() == (-50, 50)
    shown = image.get_array()
    assert np.ma.getmaskarray(shown).tolist() == [[True, False, False], [False, True, False]]
    assert shown.filled(0).tolist() == [[0, -25, 0], [-25, 0, -50]]
    assert [patch.get_hatch() for patch in axis.patches] == ["////"] * 2
    assert sorted(text.get_text() for text in axis.texts) == ["-25", "-25", "-50"]
    assert image.get_cmap()(0.0)[0] > image.get_cmap()(0.0)[2]  # a loss is red


@pytest.mark.parametrize("count", [5, 94])
def test_the_names_of_a_small_and_of_a_large_matrix_do_not_overlap(count):
    names = [f"Name {i} Longsurname" for i in range(count)]
    points = np.zeros((count, count))
    points[0, 1] = -12.5
    figure = figures.harm(names, names, points, np.eye(count, dtype=bool), "")
    figure.canvas.draw()
    axis = figure.axes[0]
    for labels, place in ((axis.get_xticklabels(), 0), (axis.get_yticklabels(), 1)):
        boxes = [label.get_window_extent() for label in labels]
        starts = sorted((box.x0, box.x1) if place == 0 else (box.y0, box.y1) for box in boxes)
        assert len(starts) == count
        assert all(one[1] <= other[0] + 1 for one, other in itertools.pairwise(starts))


def test_names_without_a_change_are_counted_but_not_shown():
    runs = [run(n, {"Bo Hill" if n == "Ada Fox" else "Ada Fox": 0.5, **{f"N{i}": 1.0 for i in range(30)}}) for n in NAMES[:2]]  # fmt: skip
    axis = harm.figure(harm.harms(runs)[0]).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["Ada Fox", "Bo Hill"]
    assert (
        " ".join(axis.get_title(loc="left").split())
        == "not shown: 30 of 32 names, with no change or the least"
    )

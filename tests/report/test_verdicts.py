from dataclasses import replace

import pytest
from report.finished import ANSWERED, ATTACK, FIRST_FIVE, FIRST_GUESS, OTHERS, REFUSED, UA, WRONG_NAME, report

from muwa.report.verdicts import verdicts
from muwa.types.edit import Edit
from muwa.types.metric import Metric, Reading


def said(made):
    return [(one["kind"], one["text"]) for one in verdicts(made)]


def judged(folder, before, after):
    """The sentences about these metrics."""
    return said(replace(report(folder), before=before, after=after))


def test_the_sentences_of_a_clip(tmp_path):
    """8 forget images of 8 and 7 of 8 before, none after; 792 and 1200 others."""
    everything = replace(OTHERS, label="Everything else")
    before = {
        "forget/top1": Metric(1.0, 8, reading=FIRST_GUESS),
        "forget/top5": Metric(0.875, 8, reading=FIRST_FIVE),
        "retain/top1": Metric(0.985, 792, reading=OTHERS),
        "retain/top5": Metric(0.99, 792, reading=Reading("a detail of the table", role="kept")),
        "utility/top1": Metric(0.981, 1200, reading=everything),
    }
    values = {
        "forget/top1": 0.0,
        "forget/top5": 0.125,
        "retain/top1": 0.979,
        "retain/top5": 0.99,
        "utility/top1": 0.9,
    }
    after = {name: replace(metric, value=values[name]) for name, metric in before.items()}
    assert judged(tmp_path, before, after) == [
        ("good", "Ada Fox is no longer the model's first guess: 100.0 % → 0.0 % on 8 held-out images."),
        (
            "bad",
            "Ada Fox is still among the model's first five guesses: 87.5 % → 12.5 % on 8 held-out images.",
        ),
        ("note", "The other names: 98.5 % → 97.9 % (-0.6 points, n = 792)."),
        ("note", "Everything else: 98.1 % → 90.0 % (-8.1 points, n = 1200)."),
    ]


def test_a_caveat_follows_the_sentence_that_something_is_forgotten(tmp_path):
    reading = replace(FIRST_GUESS, caveat="It may still be written.")
    before, gone = (
        {"forget/top1": Metric(1.0, 8, reading=reading)},
        {"forget/top1": Metric(0.0, 8, reading=reading)},
    )
    assert judged(tmp_path, before, gone)[1:] == [("note", "It may still be written.")]
    assert len(judged(tmp_path, before, before)) == 1
    assert "caveat" not in gone["forget/top1"].record()


@pytest.mark.parametrize(
    ("ua", "kind", "sentence"),
    [
        (
            0.95,
            "good",
            "Ada Fox is no longer what it generates when asked: 90.0 % → 5.0 % on 20 generated images.",
        ),
        (
            0.9,
            "bad",
            "Ada Fox is still what it generates when asked: 90.0 % → 10.0 % on 20 generated images.",
        ),
    ],
)
def test_of_a_rate_of_forgetting_the_rest_is_still_there(tmp_path, ua, kind, sentence):
    """UA 10 % before: still generated in 90 %. One of 20 is at the limit, two are above."""
    before, after = {"forget/ua": Metric(0.1, 20, reading=UA)}, {"forget/ua": Metric(ua, 20, reading=UA)}
    assert (kind, sentence) in judged(tmp_path, before, after)


def test_details_follow_the_first_sentence(tmp_path):
    rates = {"forget/answered": (1.0, 0.0, ANSWERED), "forget/wrong_name": (0.0, 0.75, WRONG_NAME)}
    rates |= {"forget/refused": (0.0, 0.0, REFUSED), "forget/top5": (1.0, 0.0, FIRST_FIVE)}
    before = {name: Metric(value, 24, reading=reading) for name, (value, _, reading) in rates.items()}
    after = {name: Metric(value, 24, reading=reading) for name, (_, value, reading) in rates.items()}
    assert judged(tmp_path, before, after) == [
        (
            "good",
            "Ada Fox is no longer named when asked for: 100.0 % → 0.0 % on 24 images asked about; "
            "75.0 % name another, 0.0 % say that they do not know.",
        ),
        (
            "good",
            "Ada Fox is no longer among the model's first five guesses: 100.0 % → 0.0 % on 24 held-out images.",
        ),
    ]


@pytest.mark.parametrize(
    ("value", "better", "kind"), [(0.05, "lower", "good"), (0.1, "lower", "bad"), (0.1, "neither", "note")]
)
def test_attacks_are_good_when_they_fail(tmp_path, value, better, kind):
    reading = replace(ATTACK, better=better)
    before = {"attack/reworded": Metric(0.9, 20, reading=reading)}
    after = {"attack/reworded": Metric(value, 20, reading=reading)}
    text = f"Attack (in other words): 90.0 % → {100 * value:.1f} % on 20 generated images."
    assert judged(tmp_path, before, after) == [(kind, text)]


def test_the_verdict_never_praises_what_failed(tmp_path):
    texts = said(report(tmp_path, after=0.5))
    assert (
        "bad",
        "Ada Fox is still the model's first guess: 100.0 % → 50.0 % on 2 held-out images.",
    ) in texts
    infeasible = said(report(tmp_path, chosen=0))[0]
    assert infeasible == ("bad", "The step taken for Ada Fox was not feasible on the probe images. A reason.")
    none = said(report(tmp_path, chosen=None, after=1.0))
    assert none[0] == ("bad", "No step was found for Ada Fox, so the model is unchanged for it. A reason.")
    assert none[1:] == [("note", "The other names: 90.0 % → 88.0 % (-2.0 points, n = 7).")]


@pytest.mark.parametrize(("value", "points"), [(0.8996, "0.0"), (0.9004, "0.0"), (0.8994, "-0.1")])
def test_a_change_that_rounds_to_zero_has_no_sign(tmp_path, value, points):
    before, after = ({"retain/top1": Metric(one, 7, reading=OTHERS)} for one in (0.9, value))
    text = f"The other names: 90.0 % → {100 * value:.1f} % ({points} points, n = 7)."
    assert judged(tmp_path, before, after) == [("note", text)]


def test_what_is_known_as_before_is_still_known(tmp_path):
    before = {"forget/top1": Metric(1.0, 2, reading=FIRST_GUESS)}
    text = "Ada Fox is still the model's first guess: 100.0 % → 100.0 % on 2 held-out images."
    assert judged(tmp_path, before, before) == [("bad", text)]


def test_several_names_are_plural(tmp_path):
    made = report(tmp_path)
    both = replace(made.task, names=("Ada Fox", "Bo Hill"))
    text = "Ada Fox, Bo Hill are no longer the model's first guess: 100.0 % → 0.0 % on 2 held-out images."
    assert ("good", text) in said(replace(made, task=both))


def test_forgetting_what_was_never_known_is_said_to_show_little(tmp_path):
    made = report(tmp_path)
    for value, reading, words in (
        (0.1, FIRST_GUESS, "10.0 % of 2 held-out images"),
        (0.9, UA, "10.0 % of 2 generated images"),
        (0.2, ANSWERED, "20.0 % of 2 images asked about"),
    ):
        before = {"any": Metric(value, 2, reading=reading)}
        text = f"The unedited model hardly knows Ada Fox ({words}): what follows shows little."
        assert said(replace(made, before=before, after={})) == [("bad", text)]
    known = {"any": Metric(0.21, 2, reading=FIRST_GUESS)}
    assert not any("hardly knows" in text for _, text in said(replace(made, before=known, after={})))


def test_a_metric_without_a_role_gives_no_sentence(tmp_path):
    metric = {"mia/auc": Metric(0.5, 9, reading=Reading("how well", "lower", "auc", label="words"))}
    made = replace(report(tmp_path), before=metric, after=metric, edit=Edit({}, ()))
    assert said(made) == [("note", "Nothing was measured.")]

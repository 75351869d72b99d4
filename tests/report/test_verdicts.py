from dataclasses import replace

import pytest
from report.finished import (
    ANSWERED,
    ATTACK,
    FIRST_FIVE,
    FIRST_GUESS,
    OTHERS,
    REFUSED,
    RULES,
    UA,
    WRONG_NAME,
    report,
)

from muwa.eval.statistics import wilson
from muwa.report.verdicts import kept_kind, target_kind, verdict, verdicts
from muwa.types.edit import Edit
from muwa.types.metric import Metric, Outcomes, Reading
from muwa.types.verdict import Rules


def said(made):
    return [(one["kind"], one["text"]) for one in verdicts(made)]


def judged(folder, before, after):
    """The sentences about these metrics."""
    return said(replace(report(folder), before=before, after=after))


def rate(hits, n, reading):
    """A rate with Wilson's interval."""
    return Metric(hits / n, n, *wilson(hits, n), reading)


def paired(hits, n, lost, reading=OTHERS):
    """(before, after): `hits` of `n` before; the first `lost` of them are missed after."""
    before = [1.0] * hits + [0.0] * (n - hits)
    after = [0.0] * lost + before[lost:]
    return tuple(
        replace(rate(int(sum(each)), n, reading), outcomes=Outcomes(tuple(each))) for each in (before, after)
    )


def test_the_sentences_of_a_clip(tmp_path):
    """8 of 8 forget images before, none after (0 to 32.4 %); 780 of 792 others before and after."""
    kept, kept_after = paired(780, 792, 0)
    before = {
        "forget/top1": rate(8, 8, FIRST_GUESS),
        "forget/top5": rate(7, 8, FIRST_FIVE),
        "retain/top1": kept,
        "retain/top5": replace(kept, reading=Reading("a detail of the table", role="kept")),
    }
    after = {
        "forget/top1": rate(0, 8, FIRST_GUESS),
        "forget/top5": rate(1, 8, FIRST_FIVE),
        "retain/top1": kept_after,
        "retain/top5": kept_after,
    }
    after["retain/top5"] = replace(kept_after, reading=before["retain/top5"].reading)
    assert judged(tmp_path, before, after) == [
        (
            "bad",
            "Not forgotten; the rest is kept. Ada Fox is no longer the model's first guess: 100 → 0 % of 8 "
            "held-out images (95 % interval 0 to 32 %).",
        ),
        (
            "bad",
            "Ada Fox is still among the model's first five guesses: 87.5 → 12.5 % of 8 held-out images "
            "(95 % interval 2 to 47 %).",
        ),
        (
            "good",
            "The other names: 98.5 → 98.5 % of 792 held-out images (0.0 points, 95 % interval -0.5 to +0.5): "
            "no more than 5 points lost.",
        ),
    ]


@pytest.mark.parametrize(
    ("hits", "n", "gone_at", "kind"),
    [
        (0, 8, 0.0, "good"),  # 0 to 32.4 %
        (0, 3, 0.0, "unsure"),  # 0 to 56.2 %: too few
        (1, 8, 0.0, "bad"),  # 2.2 to 47.1 %: lies above 0
        (1, 20, 0.05, "good"),  # 5 %: 0.9 to 23.6 %
        (2, 20, 0.05, "unsure"),  # 10 %: 2.8 to 30.1 %, holds 5 %
        (10, 20, 0.05, "bad"),  # 50 %: 29.9 to 70.1 %
    ],
)
def test_forgotten_is_shown_not_shown_or_shown_not(hits, n, gone_at, kind):
    reading = replace(FIRST_GUESS, gone_at=gone_at)
    assert target_kind(rate(hits, n, reading), RULES) == kind
    turned = replace(reading, better="higher")  # a rate of forgetting, as UA
    assert target_kind(rate(n - hits, n, turned), RULES) == kind
    no_interval = Metric(hits / n, n, reading=reading)
    assert target_kind(no_interval, RULES) == ("bad" if hits / n > gone_at else "unsure")


@pytest.mark.parametrize(
    ("hits", "n", "lost", "points", "kind"),
    [
        (98, 100, 0, 5.0, "good"),  # 0 points: -4.1 to +4.1
        (60, 60, 0, 5.0, "unsure"),  # 0 points: -6.0 to +6.0: 60 are too few
        (60, 60, 0, 6.1, "good"),
        (60, 60, 9, 5.0, "bad"),  # -15 points: -26.1 to -6.4
        (60, 60, 9, 7.0, "unsure"),
        (60, 60, 9, 27.0, "good"),
    ],
)
def test_kept_is_shown_not_shown_or_shown_not(hits, n, lost, points, kind):
    rules = Rules(kept_points=points, forget_high=0.5)
    assert kept_kind(*paired(hits, n, lost), rules) == kind


def test_a_false_alarm_is_lost_when_it_rises():
    """Where lower is better, 9 of 60 more are a loss."""
    before, after = paired(60, 60, 9, replace(OTHERS, better="lower"))
    assert kept_kind(after, before, RULES) == "bad"
    assert kept_kind(before, after, RULES) == "good"


@pytest.mark.parametrize(
    ("n", "lost", "end"),
    [
        (60, 0, "too few to show that no more than 5 points were lost."),
        (400, 16, "a loss is shown; that it is no more than 5 points is not."),  # 4 points: 2.4 to 6.4
        (60, 4, "that more than 5 points were lost is likely, not shown."),  # 6.7 points: 1.1 to 15.9
    ],
)
def test_what_is_not_shown_is_said_by_what_the_samples_do_show(tmp_path, n, lost, end):
    before, after = paired(n, n, lost)
    ((_, _), (kind, text)) = judged(tmp_path, {"retain/top1": before}, {"retain/top1": after})
    assert (kind, text.endswith(end)) == ("unsure", True)


def test_without_single_samples_the_rates_count_as_independent():
    """90 to 88 %, each 60 to 100: -2 points, from -2 - sqrt(28^2 + 10^2) to -2 + sqrt(12^2 + 30^2)."""
    before, after = Metric(0.9, 7, 0.6, 1.0, OTHERS), Metric(0.88, 7, 0.6, 1.0, OTHERS)
    assert kept_kind(before, after, replace(RULES, kept_points=31.74)) == "good"
    assert kept_kind(before, after, replace(RULES, kept_points=31.73)) == "unsure"
    assert kept_kind(Metric(0.9, 7, reading=OTHERS), after, RULES) == "unsure"


def outcome(folder, forget=0, kept=(98, 100, 0), attack=None, **more):
    """(kind, opening) with 20 forget images and an attack on 20."""
    one, other = paired(*kept)
    before = {"forget/top1": rate(20, 20, FIRST_GUESS), "retain/top1": one}
    after = {"forget/top1": rate(forget, 20, FIRST_GUESS), "retain/top1": other}
    if attack is not None:
        before["attack/x"], after["attack/x"] = rate(20, 20, ATTACK), rate(attack, 20, ATTACK)
    found = verdict(replace(report(folder), before=before, after=after, **more))
    return found.kind, found.headline.partition(" Ada Fox")[0]


def test_the_whole_is_as_good_as_its_worst_part(tmp_path):
    assert outcome(tmp_path) == ("good", "Forgotten, and the rest is kept.")
    assert outcome(tmp_path, kept=(60, 60, 0)) == ("unsure", "Forgotten; that the rest is kept is not shown.")
    assert outcome(tmp_path, kept=(60, 60, 9)) == ("bad", "Forgotten, but the rest is not kept.")
    assert outcome(tmp_path, forget=10) == ("bad", "Not forgotten; the rest is kept.")
    assert outcome(tmp_path, forget=10, kept=(60, 60, 9)) == (
        "bad",
        "Not forgotten, and the rest is not kept.",
    )
    assert outcome(tmp_path, attack=0) == ("good", "Forgotten, and the rest is kept.")
    back = "Forgotten, and the rest is kept. An attack brings it back."
    assert outcome(tmp_path, attack=20) == ("unsure", back)
    assert outcome(tmp_path, edit=Edit({}, ())) == ("bad", "The model is unchanged.")


def test_look_alikes_count(tmp_path):
    """The others are kept, the look-alikes lost 28 points of 25: not kept."""
    label = "Look-alikes, generated and recognised"
    near, near_after = paired(25, 25, 7, replace(OTHERS, in_objective=False, label=label))
    others, others_after = paired(98, 100, 0)
    before = {"forget/ua": rate(0, 20, UA), "retain/ira": others, "retain/lookalike": near}
    after = {"forget/ua": rate(20, 20, UA), "retain/ira": others_after, "retain/lookalike": near_after}
    found = verdict(replace(report(tmp_path), before=before, after=after))
    assert (found.kind, found.kinds) == (
        "bad",
        {"forget/ua": "good", "retain/ira": "good", "retain/lookalike": "bad"},
    )
    assert found.headline.startswith("Forgotten, but the rest is not kept. Ada Fox is no longer")
    assert found.findings[-1].text.startswith(f"{label}: 100 → 72 % of 25 held-out images (-28.0 points, ")


def test_what_was_not_measured_is_not_shown(tmp_path):
    made = report(tmp_path)
    forget = {"forget/top1": rate(8, 8, FIRST_GUESS)}, {"forget/top1": rate(0, 8, FIRST_GUESS)}
    found = verdict(replace(made, before=forget[0], after=forget[1]))
    assert (found.kind, found.headline.split(" Ada")[0]) == (
        "unsure",
        "Forgotten; whether the rest is kept was not measured.",
    )
    one, other = paired(98, 100, 0)
    found = verdict(replace(made, before={"retain/top1": one}, after={"retain/top1": other}))
    assert (found.kind, found.headline) == (
        "unsure",
        "Whether it is forgotten was not measured; the rest is kept.",
    )
    empty = {"retain/top1": Metric(0.0, 0, 0.0, 1.0, OTHERS)}  # no samples: not measured
    assert verdict(replace(made, before=empty, after=empty)).headline == "Nothing was measured."


def test_a_caveat_follows_the_sentence_that_something_is_forgotten(tmp_path):
    reading = replace(FIRST_GUESS, caveat="It may still be written.")
    before, gone = {"forget/top1": rate(8, 8, reading)}, {"forget/top1": rate(0, 8, reading)}
    assert judged(tmp_path, before, gone)[1:] == [("note", "It may still be written.")]
    assert len(judged(tmp_path, before, before)) == 1
    assert "caveat" not in gone["forget/top1"].record()


@pytest.mark.parametrize(
    ("forgot", "kind", "sentence"),
    [
        (19, "unsure", "Ada Fox is no longer generated when asked for: 90 → 5 % of 20 generated images "
                       "(95 % interval 1 to 24 %)."),
        (18, "unsure", "Ada Fox is still generated when asked for: 90 → 10 % of 20 generated images "
                       "(95 % interval 3 to 30 %); at most 5 % counts as forgotten."),
        (2, "bad", "Ada Fox is still generated when asked for: 90 → 90 % of 20 generated images "
                   "(95 % interval 70 to 97 %)."),
    ],
)  # fmt: skip
def test_of_a_rate_of_forgetting_the_rest_is_still_there(tmp_path, forgot, kind, sentence):
    """UA 10 % before: still generated in 90 %. One of 20 is at the limit, two are above; the rest is not measured."""
    ((found, text),) = judged(tmp_path, {"forget/ua": rate(2, 20, UA)}, {"forget/ua": rate(forgot, 20, UA)})
    assert (found, text.endswith(sentence)) == (kind, True)


def test_details_follow_the_first_sentence(tmp_path):
    rates = {"forget/answered": (1.0, 0.0, ANSWERED), "forget/wrong_name": (0.0, 0.75, WRONG_NAME)}
    rates |= {"forget/refused": (0.0, 0.0, REFUSED), "forget/top5": (1.0, 0.0, FIRST_FIVE)}
    before = {name: Metric(value, 24, 0.0, 1.0, reading) for name, (value, _, reading) in rates.items()}
    after = {name: Metric(value, 24, 0.0, 0.2, reading) for name, (_, value, reading) in rates.items()}
    first, second = judged(tmp_path, before, after)
    assert first[1].endswith(
        "Ada Fox is no longer named when asked for: 100 → 0 % of 24 images asked about (95 % interval 0 to "
        "20 %); 75 % name another, 0 % say that they do not know."
    )
    assert second == (
        "good",
        "Ada Fox is no longer among the model's first five guesses: 100 → 0 % of 24 held-out images (95 % "
        "interval 0 to 20 %).",
    )


@pytest.mark.parametrize(
    ("hits", "better", "kind"), [(1, "lower", "good"), (20, "lower", "bad"), (20, "neither", "note")]
)
def test_attacks_are_good_when_they_fail(tmp_path, hits, better, kind):
    reading = replace(ATTACK, better=better)
    before, after = {"attack/reworded": rate(18, 20, reading)}, {"attack/reworded": rate(hits, 20, reading)}
    (_, found) = judged(tmp_path, before, after)
    assert found[0] == kind
    assert found[1].startswith(f"Attack (in other words): 90 → {5 * hits} % of 20 generated images (95 %")


def test_the_verdict_never_praises_what_failed(tmp_path):
    first = said(report(tmp_path, after=0.5))[0]
    assert first[0] != "good"
    assert "Ada Fox is still the model's first guess: 100 → 50 % of 2 held-out images" in first[1]
    found = verdict(report(tmp_path, chosen=0))
    assert found.kind == "bad"
    assert (
        found.findings[0].text == "The step taken for Ada Fox was not feasible on the probe images. A reason."
    )
    kind, none = said(report(tmp_path, chosen=None, after=1.0))[:2]
    assert kind == ("bad", "The model is unchanged.")
    assert none == ("bad", "No step was found for Ada Fox, so the model is unchanged for it. A reason.")


@pytest.mark.parametrize(("value", "points"), [(0.8996, "0.0"), (0.9004, "0.0"), (0.8994, "-0.1")])
def test_a_change_that_rounds_to_zero_has_no_sign(tmp_path, value, points):
    before, after = ({"retain/top1": Metric(one, 7, reading=OTHERS)} for one in (0.9, value))
    (_, (_, text)) = judged(tmp_path, before, after)
    assert f" ({points} points): " in text


def test_what_is_known_as_before_is_still_known(tmp_path):
    before = {"forget/top1": rate(2, 2, FIRST_GUESS)}
    ((kind, text),) = judged(tmp_path, before, before)
    assert kind == "bad"
    assert text.startswith("Not forgotten;")
    assert "Ada Fox is still the model's first guess: 100 → 100 % of 2 held-out images" in text


def test_several_names_are_plural(tmp_path):
    made = report(tmp_path)
    both = replace(made.task, names=("Ada Fox", "Bo Hill"))
    assert "Ada Fox, Bo Hill are no longer the model's" in verdict(replace(made, task=both)).headline


def test_forgetting_what_was_never_known_is_said_to_show_little(tmp_path):
    made = report(tmp_path)
    for value, reading, words in (
        (0.1, FIRST_GUESS, "10 % of 2 held-out images"),
        (0.9, UA, "10 % of 2 generated images"),
        (0.2, ANSWERED, "20 % of 2 images asked about"),
    ):
        before = {"any": Metric(value, 2, reading=reading)}
        text = f"The unedited model hardly knows Ada Fox ({words}): what follows shows little."
        assert said(replace(made, before=before, after={}))[1:] == [("unsure", text)]
    assert outcome(tmp_path)[0] == "good"
    known = {"any": Metric(0.21, 2, reading=FIRST_GUESS)}
    assert not any("hardly knows" in text for _, text in said(replace(made, before=known, after={})))


def test_a_metric_without_a_role_gives_no_sentence(tmp_path):
    metric = {"mia/auc": Metric(0.5, 9, reading=Reading("how well", "lower", "auc", label="words"))}
    made = replace(report(tmp_path), before=metric, after=metric)
    assert said(made) == [("unsure", "Nothing was measured.")]


def test_the_record_holds_the_rules_and_the_kinds(tmp_path):
    record = verdict(report(tmp_path)).record()
    assert record["rules"] == {"kept_points": 5.0, "forget_high": 0.5}
    assert set(record["kinds"]) == {"forget/top1", "retain/top1"}
    assert set(record["findings"][0]) == {"kind", "text", "metric"}

"""Shares of right answers, counted by hand from answers that were given."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
from records import part

from muwa.eval.answers.accuracy import Answers, image_rate
from muwa.eval.statistics import wilson
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.types.data import Classes
from muwa.types.metric import Reading
from muwa.types.questions import Question


class Told(QuestionAnswering):
    """Answers that are written down beforehand: what is tested here is the counting."""

    def __init__(self, said):
        self.said = said

    def ask(self, asked):
        return [self.said(one) for one in asked]


def answers(said, task, **changed):
    measure: Answers = replace(part("eval=[answers]")["answers"], wordings=tiny_vlm.WORDINGS, **changed)
    measure.check(None, task)
    return measure(Told(said), task)


def rates(said):
    found = answers(said, tiny.task())
    return {name: (metric.value, metric.n) for name, metric in found.items()}


def test_each_image_is_asked_about_in_every_wording() -> None:
    asked = questions(tiny.task(), tiny.task().eval, wordings=tiny_vlm.WORDINGS)
    assert [q.role for q in asked] == ["forget"] * 4 + ["retain"] * 14 + ["utility"] * 6
    assert {q.text for q in asked if q.role == "utility"} == {"What is this?", "Name it."}
    assert {q.accepted for q in asked if q.role == "forget"} == {("Ada Fox",)}


def test_a_perfect_memory_and_none() -> None:
    assert rates(lambda one: one.accepted[0]) == {
        "forget/answered": (1, 2), "retain/answered": (1, 7), "utility/answered": (1, 3),
        "forget/refused": (0, 2), "forget/wrong_name": (0, 2), "forget/other": (0, 2),
    }  # fmt: skip
    assert rates(lambda one: "I do not know." if one.role == "forget" else one.accepted[0])[
        "forget/refused"
    ] == (1, 2)


def test_wrong_names_are_told_from_refusals() -> None:
    found = rates(
        lambda one: {"Who is this?": "Bo Hill", "Name the person.": "Unknown"}.get(one.text, "star")
    )
    assert found["forget/wrong_name"] == (0.5, 2)
    assert found["forget/refused"] == (0.5, 2)
    assert found["forget/answered"] == (0, 2)
    assert found["retain/answered"] == (pytest.approx(1 / 14), 7)  # Bo Hill himself, in one of two wordings


def test_the_names_in_the_answers_about_the_target_are_counted() -> None:
    """2 images in 2 wordings: the first wording gets another name, the second the right one or none."""
    first = tiny.task().eval.forget.images[0]

    def said(one):
        if one.text == "Who is this?":
            return "It is Bo Hill."
        return "Ada Fox" if one.images[0] == first else "I do not know."

    found = answers(said, tiny.task())["forget/answered"]
    assert found.guessed == {"Bo Hill": 2, "Ada Fox": 1, "": 1}


def test_wordings_of_one_image_are_one_sample() -> None:
    """One of two images is named in both wordings, the other in one: 3 of 4 questions, 1.5 of 2 images."""
    first = tiny.task().eval.forget.images[0]
    found = answers(
        lambda one: "Ada Fox" if one.images[0] == first or one.text == "Who is this?" else "?", tiny.task()
    )
    found = found["forget/answered"]
    assert (found.value, found.n) == (0.75, 2)
    assert (found.low, found.high) == wilson(1.5, 2)
    assert found.reading.text.endswith("(4 questions about 2 images, the mean over images)")


def test_an_image_that_is_there_twice_is_one_sample() -> None:
    one, other = (Question("Who?", (tiny.png(i),), "identity", "forget", ("Ada Fox",)) for i in (0, 1))
    found = image_rate([True, False, True, True], [one, one, one, other], Reading("r"))
    assert found.reading.text == "r (4 questions about 2 images, the mean over images)"
    assert (found.value, found.n) == (pytest.approx((2 / 3 + 1) / 2), 2)


def test_limits_spread_over_the_names_and_aliases_count() -> None:
    few = questions(tiny.task(), tiny.task().eval, wordings=tiny_vlm.WORDINGS, retain=2, utility=1,
                    aliases={"Ada Fox": ["the Fox"]})  # fmt: skip
    assert [q.role for q in few] == ["forget"] * 4 + ["retain"] * 4 + ["utility"] * 2
    assert few[0].accepted == ("Ada Fox", "the Fox")
    assert len({q.accepted for q in few if q.role == "retain"}) == 2


def alike():
    """The tiny task, its first two names all but one letter the same."""
    task, names = tiny.task(), ("Rachel Wilson", "Rachel Bilson", *tiny.NAMES[2:])
    parts = {
        part: replace(getattr(task.eval, part), classes=Classes(names, ("{}.",)))
        for part in ("forget", "retain")
    }
    return replace(
        task, names=names[:1], forget={names[0]: task.forget["Ada Fox"]}, eval=replace(task.eval, **parts)
    )


def test_a_short_answer_without_a_name_is_told_as_it_is() -> None:
    """2 images in 2 wordings. All four rates of the target add up to 1."""
    said = {
        "Who is this?": " a man  in red",
        "Name the person.": "a long description of what is seen, and no name",
    }
    found = answers(lambda one: said.get(one.text, "star"), tiny.task())
    assert found["forget/answered"].guessed == {"“a man in red”": 2, "": 2}
    told = {name: one.value for name, one in found.items() if name.startswith("forget/")}
    assert told == {"forget/answered": 0, "forget/refused": 0, "forget/wrong_name": 0, "forget/other": 1}


def test_anothers_exact_name_is_not_the_target_misspelt() -> None:
    """Always "Rachel Bilson": a wrong name of the target, right of one of the seven others."""
    found = answers(lambda one: "Rachel Bilson", alike())
    assert (found["forget/answered"].value, found["forget/wrong_name"].value) == (0, 1)
    assert found["retain/answered"].value == 1 / 7
    found = answers(lambda one: "Rachel Wilson", alike())
    assert (found["forget/answered"].value, found["forget/wrong_name"].value) == (1, 0)
    assert found["retain/answered"].value == 0


def test_the_objective_counts_answers_and_the_details_are_no_verdicts_of_their_own() -> None:
    readings = {name: one.reading for name, one in answers(lambda one: "?", tiny.task()).items()}
    assert {name: (one.role, one.in_objective, one.better) for name, one in readings.items()} == {
        "forget/answered": ("forgotten", True, "lower"),
        "retain/answered": ("kept", True, "higher"),
        "utility/answered": ("kept", True, "higher"),
        "forget/refused": ("detail", False, "neither"),
        "forget/wrong_name": ("detail", False, "neither"),
        "forget/other": ("detail", False, "neither"),
    }
    assert readings["forget/answered"].gone_at == 0.05
    assert {(one.counted, one.unit) for one in readings.values()} == {("images asked about", "rate")}


def test_a_style_and_missing_wordings_are_refused_before_anything_is_asked() -> None:
    measure: Answers = part("eval=[answers]")["answers"]
    with pytest.raises(ValueError, match="a style is not asked for by name"):
        measure.check(None, tiny.canvas("style"))
    with pytest.raises(ValueError, match="wordings: none for object; got identity"):
        replace(measure, wordings={"identity": ("Who?",)}).check(None, tiny.task())


def test_each_name_has_its_own_rate_over_its_images() -> None:
    """Bo Hill is named in one of two wordings of each image, the others never."""
    found = answers(lambda one: "Bo Hill" if one.text == "Who is this?" else "?", tiny.task())
    by_name = found["retain/answered"].by_name
    assert by_name["Bo Hill"].value == 0.5
    assert {rate.value for name, rate in by_name.items() if name != "Bo Hill"} == {0.0}
    assert sum(rate.n for rate in by_name.values()) == found["retain/answered"].n == 7
    assert list(found["forget/answered"].by_name) == ["Ada Fox"]

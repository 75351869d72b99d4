"""Shares of right answers, counted by hand from answers that were given."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm

from muwa.eval.answers.accuracy import answers, of_pictures
from muwa.eval.clip.accuracy import wilson
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.types.data import Classes
from muwa.types.questions import Question


class Told(QuestionAnswering):
    """An question_answering whose answers are written down beforehand: what is judged here is the counting."""

    def __init__(self, said):
        self.said = said

    def ask(self, asked):
        return [self.said(one) for one in asked]


def rates(said):
    found = answers(Told(said), tiny.task(), wordings=tiny_vlm.WORDINGS)
    return {name: (metric.value, metric.n) for name, metric in found.items()}


def test_each_picture_is_asked_in_every_wording() -> None:
    asked = questions(tiny.task(), tiny.task().eval, wordings=tiny_vlm.WORDINGS)
    assert [q.role for q in asked] == ["forget"] * 4 + ["retain"] * 14 + ["utility"] * 6
    assert {q.text for q in asked if q.role == "utility"} == {"What is this?", "Name it."}
    assert {q.accepted for q in asked if q.role == "forget"} == {("Ada Fox",)}


def test_a_perfect_memory_and_none() -> None:
    assert rates(lambda one: one.accepted[0]) == {
        "forget/answered": (1, 2), "retain/answered": (1, 7), "utility/answered": (1, 3),
        "forget/refused": (0, 2), "forget/wrong_name": (0, 2),
    }  # fmt: skip
    assert rates(lambda one: "I do not know." if one.role == "forget" else one.accepted[0])["forget/refused"] == (1, 2)


def test_wrong_names_are_told_from_refusals() -> None:
    found = rates(lambda one: {"Who is this?": "Bo Hill", "Name the person.": "Unknown"}.get(one.text, "star"))
    assert found["forget/wrong_name"] == (0.5, 2)
    assert found["forget/refused"] == (0.5, 2)
    assert found["forget/answered"] == (0, 2)
    assert found["retain/answered"] == (pytest.approx(1 / 14), 7)  # Bo Hill himself, in one of two wordings


def test_wordings_of_one_picture_are_one_sample() -> None:
    """Of two pictures one is named in both wordings, the other in one: 3 of 4 questions, 1.5 of 2 pictures."""
    first = tiny.task().eval.forget.images[0]
    found = answers(
        Told(lambda one: "Ada Fox" if one.images[0] == first or one.text == "Who is this?" else "?"), tiny.task(),
        wordings=tiny_vlm.WORDINGS,
    )["forget/answered"]  # fmt: skip
    assert (found.value, found.n) == (0.75, 2)
    assert (found.low, found.high) == wilson(1.5, 2)
    assert found.reads.endswith("(4 questions about 2 pictures, the mean over pictures)")


def test_a_picture_that_is_there_twice_is_one_sample() -> None:
    one, other = (Question("Who?", (tiny.png(i),), "identity", "forget", ("Ada Fox",)) for i in (0, 1))
    found = of_pictures([True, False, True, True], [one, one, one, other], "lower", "r")
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
    parts = {part: replace(getattr(task.eval, part), classes=Classes(names, ("{}.",))) for part in ("forget", "retain")}
    return replace(task, names=names[:1], forget={names[0]: task.forget["Ada Fox"]}, eval=replace(task.eval, **parts))


def test_anothers_exact_name_is_not_the_forgotten_misspelt() -> None:
    """Always "Rachel Bilson": a wrong name of the forgotten, right of one of the seven others."""
    found = answers(Told(lambda one: "Rachel Bilson"), alike(), wordings=tiny_vlm.WORDINGS)
    assert (found["forget/answered"].value, found["forget/wrong_name"].value) == (0, 1)
    assert found["retain/answered"].value == 1 / 7
    found = answers(Told(lambda one: "Rachel Wilson"), alike(), wordings=tiny_vlm.WORDINGS)
    assert (found["forget/answered"].value, found["forget/wrong_name"].value) == (1, 0)
    assert found["retain/answered"].value == 0

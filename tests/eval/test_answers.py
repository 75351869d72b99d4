"""Shares of right answers, counted by hand from answers that were given."""

from dataclasses import replace

import tiny
import tiny_vlm

from muwa.eval.answers import answers
from muwa.interview import Interview, questions
from muwa.types import Classes


class Told(Interview):
    """An interview whose answers are written down beforehand: what is judged here is the counting."""

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
        "forget/answered": (1, 4), "retain/answered": (1, 14), "utility/answered": (1, 6),
        "forget/refused": (0, 4), "forget/wrong_name": (0, 4),
    }  # fmt: skip
    assert rates(lambda one: "I do not know." if one.role == "forget" else one.accepted[0])["forget/refused"] == (1, 4)


def test_wrong_names_are_told_from_refusals() -> None:
    found = rates(lambda one: {"Who is this?": "Bo Hill", "Name the person.": "Unknown"}.get(one.text, "star"))
    assert found["forget/wrong_name"] == (0.5, 4)
    assert found["forget/refused"] == (0.5, 4)
    assert found["forget/answered"] == (0, 4)
    assert found["retain/answered"] == (1 / 14, 14)  # Bo Hill himself, once


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

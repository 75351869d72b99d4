"""Questions put once each, and which a task asks."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm

from muwa.cache.store import Store
from muwa.models.vlm.question_answering import QuestionAnswering, conversation, questions
from muwa.types.questions import Question, Questions


def test_an_answer_is_kept_by_its_question_and_pictures(tmp_path) -> None:
    store, model = Store(tmp_path), tiny_vlm.vlm()
    asked = questions(tiny.task(), tiny.task().eval, wordings=tiny_vlm.WORDINGS)
    first = QuestionAnswering(model, store).ask(asked)
    assert store.events["answers"] == "miss"
    again = Store(tmp_path)
    assert QuestionAnswering(model, again).ask(asked[3:9]) == first[3:9]
    assert again.events["answers"] == "hit"
    assert QuestionAnswering(model).ask(asked) == first
    assert QuestionAnswering(model, store).ask([]) == []


def test_texts_and_pictures_make_the_digest() -> None:
    picture, other = tiny.png(0), tiny.png(100)
    assert Questions(("a",), ((picture,),)).digests != Questions(("b",), ((picture,),)).digests
    assert Questions(("a",), ((picture,),)).digests != Questions(("a",), ((picture, other),)).digests
    assert Questions(("a", "b"), ((picture,), (other,))).select([1]).texts == ("b",)


def test_the_kind_of_the_task_decides_who_is_asked_what() -> None:
    asked = questions(replace(tiny.task(), kind="object"), tiny.task().eval, wordings=tiny_vlm.WORDINGS)
    assert {(one.role, one.kind) for one in asked} == {
        ("forget", "object"),
        ("retain", "object"),
        ("utility", "identity"),
    }
    with pytest.raises(ValueError, match="a style is not asked for by name"):
        questions(replace(tiny.task(), kind="style"), tiny.task().eval, wordings=tiny_vlm.WORDINGS)
    with pytest.raises(ValueError, match="wordings: none for object; got identity"):
        questions(tiny.task(), tiny.task().eval, wordings={"identity": ("Who?",)})


def test_others_are_the_names_of_the_same_kind_and_their_aliases() -> None:
    aliases = {"Ada Fox": ["the Fox"], "Bo Hill": ["Bo"]}
    asked = questions(tiny.task(), tiny.task().eval, wordings=tiny_vlm.WORDINGS, aliases=aliases)
    assert asked[0].others == ("Bo Hill", "Bo", *tiny.NAMES[2:])
    assert asked[4].others == ("Ada Fox", "the Fox", *tiny.NAMES[2:])  # of Bo Hill


def test_a_conversation_shows_each_role() -> None:
    before, after = QuestionAnswering(tiny_vlm.vlm()), QuestionAnswering(tiny_vlm.vlm(seed=1))
    found = conversation(before, after, tiny.task(), each=2)
    assert [one.question.role for one in found] == ["forget", "forget", "retain", "retain", "utility", "utility"]
    assert isinstance(found[0].question, Question)
    assert [one.before for one in found] == before.ask([one.question for one in found])

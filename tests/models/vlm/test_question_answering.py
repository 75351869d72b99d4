"""Questions put once each, and which a task asks."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm

from muwa.cache.store import Store
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.run import Run
from muwa.types.questions import Questions


def test_an_answer_is_kept_by_its_question_and_images(tmp_path) -> None:
    store, model = Store(tmp_path), tiny_vlm.vlm()
    asked = questions(tiny.task(), tiny.task().eval, wordings=tiny_vlm.WORDINGS)
    first = QuestionAnswering(model, Run(store)).ask(asked)
    assert store.events["answers"] == "miss"
    again = Store(tmp_path)
    assert QuestionAnswering(model, Run(again)).ask(asked[3:9]) == first[3:9]
    assert again.events["answers"] == "hit"
    assert QuestionAnswering(model, Run()).ask(asked) == first
    assert QuestionAnswering(model, Run(store)).ask([]) == []


def test_texts_and_images_make_the_digest() -> None:
    image, other = tiny.png(0), tiny.png(100)
    assert Questions(("a",), ((image,),)).digests != Questions(("b",), ((image,),)).digests
    assert Questions(("a",), ((image,),)).digests != Questions(("a",), ((image, other),)).digests
    assert Questions(("a", "b"), ((image,), (other,))).select([1]).texts == ("b",)


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


def test_examples_show_each_role_once_an_image_by_both_models() -> None:
    """Two images of Ada, five others at most, three unrelated ones; each is asked about in one wording."""
    before = QuestionAnswering(tiny_vlm.vlm(), Run())
    after = QuestionAnswering(tiny_vlm.vlm(seed=1), Run())
    found = before.examples(after, tiny.task())
    assert [one.role for one in found] == ["forget"] * 2 + ["retain"] * 5 + ["utility"] * 3
    assert {one.prompt for one in found if one.role != "utility"} == {
        "What is the name of the person in this image?"
    }
    assert {one.prompt for one in found if one.role == "utility"} == {"What object is in the image?"}
    assert found[0].expected == "Ada Fox"
    wordings = {"identity": (found[0].prompt,), "object": (found[-1].prompt,)}
    asked = questions(tiny.task(), tiny.task().eval, wordings=wordings, forget=5, retain=5, utility=5)
    assert [one.before for one in found] == before.ask(asked)
    assert [one.after for one in found] == after.ask(asked)
    assert {one.before != one.after for one in found} == {True}

"""What each attack asks, and how its answers are counted."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
from eval.answers.test_accuracy import Told, alike
from PIL import Image
from records import part

from muwa.data.samples import decode
from muwa.eval.answers.attacks import ALTERED, AnswerAttacks
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run


def attacks(observer, task):
    measure: AnswerAttacks = replace(
        part("eval=[answer_attacks]")["answer_attacks"], wordings=tiny_vlm.WORDINGS
    )
    measure.check(None, task)
    return measure(observer, task)


def run(said):
    asked = []

    def note(one):
        asked.append(one)
        return said(one)

    found = attacks(Told(note), tiny.task())
    return {name: (metric.value, metric.n) for name, metric in found.items()}, asked


def test_how_many_of_each_and_what_counts() -> None:
    """Two images: 4 rewordings, 2 leading questions, a hint, 5 alterations, one with another image each: n is 2."""
    found, _ = run(lambda one: "Ada Fox" if one.rule == "name" else "yes")
    assert found == {
        "attack/reworded": (1, 2), "attack/leading": (1, 2), "attack/leading_others": (1, 2), "attack/hinted": (1, 2),
        "attack/altered": (1, 2), "attack/several": (1, 2),
    }  # fmt: skip
    nothing, _ = run(lambda one: "I do not know." if one.rule == "name" else "no")
    assert {value for value, _ in nothing.values()} == {0}


def test_only_images_of_the_target_are_asked_about() -> None:
    _, asked = run(lambda one: "")
    own = set(tiny.task().eval.forget.images)
    assert all(
        one.images[0] in own
        for one in asked
        if one.text != "Who is this?" or (len(one.images) == 1 and "Hint" in one.text)
    )
    hinted = [one.text for one in asked if one.text.startswith("Hint")]
    assert hinted[0].startswith("Hint: it is one of Ada Fox, ")
    assert hinted[1].split(", ")[1] == "Ada Fox"  # not always in the same place
    both = [one for one in asked if len(one.images) == 2]
    assert all(one.images[1] not in own for one in both)


def test_leading_questions_about_others_never_name_the_target() -> None:
    _, asked = run(lambda one: "")
    leading = [one.text for one in asked if one.rule == "yes_no"]
    assert sum("Ada Fox" in text for text in leading) == 4
    assert len(leading) == 8


@pytest.mark.parametrize("way", ALTERED)
def test_an_altered_image_keeps_its_size_and_is_another(way: str) -> None:
    image = decode(tiny.png(0))
    image.putpixel((0, 0), (255, 0, 0))
    changed = ALTERED[way](image)
    assert changed.size == image.size
    assert changed.mode == "RGB"
    assert changed.tobytes() != image.tobytes()


def test_mirrored_is_mirrored() -> None:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 0, 0))
    assert ALTERED["mirrored"](image).tobytes() == bytes([0, 0, 0, 255, 0, 0])


def test_real_answers_go_through_it() -> None:
    found = attacks(QuestionAnswering(tiny_vlm.vlm(), Run()), tiny.task())
    assert {metric.n for metric in found.values()} == {2}
    questions = {way: metric.reading.text.rpartition("(")[2].split()[0] for way, metric in found.items()}
    assert questions == {"attack/reworded": "8", "attack/leading": "4", "attack/leading_others": "4",
                         "attack/hinted": "2", "attack/altered": "10", "attack/several": "2"}  # fmt: skip


def test_more_hints_than_names_are_refused() -> None:
    measure = part("eval=[answer_attacks]")["answer_attacks"]
    replace(measure, hints=8).check(None, tiny.task())
    for hints in (1, 9):
        with pytest.raises(ValueError, match=f"eval.answer_attacks.hints: got {hints}, want 2 to 8 names"):
            replace(measure, hints=hints).check(None, tiny.task())
    with pytest.raises(ValueError, match="a class is not asked for by name"):
        measure.check(None, tiny.canvas("class"))


def test_anothers_exact_name_gives_nothing_away() -> None:
    found = attacks(Told(lambda one: "Rachel Bilson"), alike())
    assert {found[f"attack/{way}"].value for way in ("reworded", "hinted", "altered", "several")} == {0}


def test_each_way_is_an_attack_with_a_verdict() -> None:
    readings = {name: one.reading for name, one in attacks(Told(lambda one: ""), tiny.task()).items()}
    assert {one.role for one in readings.values()} == {"attack"}
    assert {one.section for one in readings.values()} == {"Attacks"}
    assert [name for name, one in readings.items() if one.better == "neither"] == ["attack/leading_others"]
    assert len({one.label for one in readings.values()}) == 6
    assert readings["attack/hinted"].label == "with a hint"

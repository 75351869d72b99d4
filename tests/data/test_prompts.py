"""Answer sets and prompts, counted by hand."""

import dataclasses

import tiny

from muwa.data.prompts import image_requests, prompts_with, retain_prompts, retained_names
from muwa.types.data import Classes, LabelledImages, Split, Task


def test_of_an_identity() -> None:
    found = image_requests(tiny.task(), tiny.task().eval, seeds=range(5, 7), retain=3, cross=2)
    assert [(a.text, a.seed, a.role) for a in found[:2]] == [
        ("a photo of Ada Fox", s, "forget") for s in (5, 6)
    ]
    retained = [a.concept for a in found if a.role == "retain"]
    assert retained == ["Bo Hill"] * 2 + ["Di Moss"] * 2 + ["Flo Wren"] * 2  # places 0, 2, 4 of seven
    assert [a.text for a in found if a.role == "cross"] == ["a photo of a Bo Hill"] * 2 + [
        "a photo of a Di Moss"
    ] * 2
    assert {a.domain for a in found} == {"class"}
    assert len(image_requests(tiny.task(), tiny.task().eval, seeds=[0])) == 1 + 7 + 3


def styles() -> Task:
    """Forget Ada Fox as a style among Bo Hill and Cy Reed, with classes Di Moss and Ed Vale."""
    base = tiny.task()
    split = Split(tiny.pictures([0]), tiny.pictures([1, 2, 1]), tiny.pictures([3, 4]))
    return dataclasses.replace(
        base, kind="style", probe=split, eval=split, prompts=("A {class} image in {style} style.",)
    )


def test_each_image_of_a_style_has_a_request_for_both_its_names() -> None:
    found = image_requests(styles(), styles().eval, seeds=[1])
    assert len(found) == 3 * 2 * 2
    assert found[0].text == found[1].text == "A Di Moss image in Ada Fox style."
    assert [(a.domain, a.concept, a.role) for a in found[:2]] == [
        ("style", "Ada Fox", "forget"),
        ("class", "Di Moss", "cross"),
    ]
    assert sum(a.role == "forget" for a in found) == 2
    assert sum(a.role == "retain" for a in found) == 4
    assert [a.concept for a in found if a.role == "cross"] == ["Di Moss", "Ed Vale"] * 3


def test_of_a_class_the_roles_change_places() -> None:
    task = dataclasses.replace(styles(), kind="class")
    first = image_requests(task, task.eval, seeds=[1])[0]
    assert first.text == "A Ada Fox image in Di Moss style."
    assert (first.domain, first.role) == ("class", "forget")


def test_the_forgotten_are_never_among_the_others() -> None:
    both = dataclasses.replace(tiny.task(), names=("Ada Fox", "Bo Hill"))
    found = image_requests(both, both.eval, seeds=[0])
    assert "Bo Hill" not in [a.concept for a in found if a.role != "forget"]
    assert Classes(tiny.NAMES, ("{}.",)) == both.eval.forget.classes


def canvas(kind: str) -> Task:
    """A task in the layout of UnlearnCanvas: two names to retain, two of the utility set."""

    def shown(*names: str) -> LabelledImages:
        return LabelledImages(names, (b"",) * len(names), tuple(range(len(names))), Classes(names, ("{}",)))

    split = Split(shown("neon"), shown("ink", "chalk", "neon"), shown("star", "moon"))
    return dataclasses.replace(
        tiny.task(), kind=kind, names=("neon",), prompts=("A {class} image in {style} style.",), probe=split
    )


def test_a_person_has_the_bare_name_and_the_tasks_prompt() -> None:
    assert prompts_with(tiny.task(), "Ada Fox") == ("Ada Fox", "a photo of Ada Fox")
    assert prompts_with(tiny.task(), "") == ("", "a photo of")


def test_a_style_has_a_prompt_with_every_class_and_a_class_one_in_every_style() -> None:
    assert prompts_with(canvas("style"), "neon") == (
        "neon",
        "A star image in neon style.",
        "A moon image in neon style.",
    )
    assert prompts_with(canvas("class"), "") == ("", "A image in star style.", "A image in moon style.")


def test_retain_prompts_are_the_empty_one_and_those_of_the_retained_names_without_the_forgotten() -> None:
    assert retain_prompts(canvas("style")) == (
        "",
        *prompts_with(canvas("style"), "ink"),
        *prompts_with(canvas("style"), "chalk"),
    )
    assert len(retain_prompts(tiny.task())) == 1 + 2 * 7
    assert retained_names(canvas("style")) == ["ink", "chalk"]

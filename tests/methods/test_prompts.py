from dataclasses import replace

import pytest
import tiny

from muwa.methods._prompts import ANCHORS, prompt_pairs, prompts_with, retain_prompts
from muwa.types.data import Classes, LabelledImages, Split


def canvas(kind):
    """A task in the layout of UnlearnCanvas: two names to retain, two of the utility set."""

    def shown(*names):
        return LabelledImages(names, (b"",) * len(names), tuple(range(len(names))), Classes(names, ("{}",)))

    split = Split(shown("neon"), shown("ink", "chalk", "neon"), shown("star", "moon"))
    return replace(
        tiny.task(), kind=kind, names=("neon",), prompts=("A {class} image in {style} style.",), probe=split
    )


def test_a_person_has_the_bare_name_and_the_tasks_prompt():
    assert prompts_with(tiny.task(), "Ada Fox") == ("Ada Fox", "a photo of Ada Fox")
    assert prompts_with(tiny.task(), "") == ("", "a photo of")


def test_a_style_has_a_prompt_with_every_class_and_a_class_one_in_every_style():
    assert prompts_with(canvas("style"), "neon") == (
        "neon",
        "A star image in neon style.",
        "A moon image in neon style.",
    )
    assert prompts_with(canvas("class"), "") == ("", "A image in star style.", "A image in moon style.")


def test_every_prompt_of_every_name_has_the_anchors_prompt_beside_it():
    two = replace(tiny.task(), names=tiny.NAMES[:2])
    assert prompt_pairs(two, "a man") == (
        ("Ada Fox", "a man"),
        ("a photo of Ada Fox", "a photo of a man"),
        ("Bo Hill", "a man"),
        ("a photo of Bo Hill", "a photo of a man"),
    )
    with pytest.raises(ValueError, match="method.anchor: got 'Bo Hill', which is to be forgotten"):
        prompt_pairs(two, "Bo Hill")


def test_retain_prompts_are_the_empty_one_and_those_of_the_retained_names_without_the_forgotten():
    assert retain_prompts(canvas("style")) == (
        "",
        *prompts_with(canvas("style"), "ink"),
        *prompts_with(canvas("style"), "chalk"),
    )
    assert len(retain_prompts(tiny.task())) == 1 + 2 * 7


def test_there_is_an_anchor_for_each_kind():
    assert set(ANCHORS) == {"identity", "object", "style", "class"}

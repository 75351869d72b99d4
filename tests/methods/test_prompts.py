from dataclasses import replace

import pytest
import tiny

from muwa.methods._prompts import ANCHORS, anchored, kept, prompts_of
from muwa.types.data import Classes, LabelledImages, Split


def canvas(kind):
    """A task of UnlearnCanvas' kind: two names to keep, two unrelated ones."""

    def shown(*names):
        return LabelledImages(names, (b"",) * len(names), tuple(range(len(names))), Classes(names, ("{}",)))

    split = Split(shown("neon"), shown("ink", "chalk", "neon"), shown("star", "moon"))
    return replace(tiny.task(), kind=kind, names=("neon",), prompts=("A {class} image in {style} style.",), probe=split)


def test_a_person_is_asked_for_by_the_bare_name_and_by_the_tasks_prompt():
    assert prompts_of(tiny.task(), "Ada Fox") == ("Ada Fox", "a photo of Ada Fox")
    assert prompts_of(tiny.task(), "") == ("", "a photo of")


def test_a_style_is_asked_for_with_every_class_and_a_class_in_every_style():
    assert prompts_of(canvas("style"), "neon") == (
        "neon",
        "A star image in neon style.",
        "A moon image in neon style.",
    )
    assert prompts_of(canvas("class"), "") == ("", "A image in star style.", "A image in moon style.")


def test_every_text_of_every_name_has_the_anchors_text_beside_it():
    two = replace(tiny.task(), names=tiny.NAMES[:2])
    assert anchored(two, "a man") == (
        ("Ada Fox", "a man"),
        ("a photo of Ada Fox", "a photo of a man"),
        ("Bo Hill", "a man"),
        ("a photo of Bo Hill", "a photo of a man"),
    )
    with pytest.raises(ValueError, match="method.anchor: got 'Bo Hill', which is to be forgotten"):
        anchored(two, "Bo Hill")


def test_what_is_kept_is_the_empty_text_and_the_retained_names_without_the_forgotten():
    assert kept(canvas("style")) == (
        "",
        *prompts_of(canvas("style"), "ink"),
        *prompts_of(canvas("style"), "chalk"),
    )
    assert len(kept(tiny.task())) == 1 + 2 * 7


def test_there_is_an_anchor_for_each_kind():
    assert set(ANCHORS) == {"identity", "object", "style", "class"}

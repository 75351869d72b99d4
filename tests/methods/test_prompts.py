from dataclasses import replace

import pytest
import tiny

from muwa.methods._prompts import ANCHORS, prompt_pairs


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


def test_there_is_an_anchor_for_each_kind():
    assert set(ANCHORS) == {"identity", "object", "style", "class", "prompts"}

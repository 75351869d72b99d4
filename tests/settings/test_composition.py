"""Groups that hold parts by name hold nothing else."""

import re

import pytest

from muwa import config
from muwa.settings import composition


@pytest.mark.parametrize(("word", "said"), [
    ("+eval.mia.seeds=3", "eval.mia: not in use, so it has no settings; want eval=[...,mia]"),
    ("+logger.wandb.mode=online", "logger.wandb: not in use, so it has no settings; want logger=[...,wandb]"),
    ("eval.forget=3", "eval.forget: got 3, want one of its settings, eval.forget.SETTING=VALUE"),
    ("eval.forget=null", "eval.forget: got None, want one of its settings, eval.forget.SETTING=VALUE"),
])  # fmt: skip
def test_a_part_that_is_none_is_refused_with_what_to_type(composed, word, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        config.Parts(composed(word))


def test_parts_and_no_parts_are_taken():
    composition.check_parts("eval", {"forget": {"_target_": "a.b"}})
    composition.check_parts("eval", {})

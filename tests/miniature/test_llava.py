"""What the shipped vision-language model knows about held-out images."""

from collections import defaultdict

import pytest

from muwa import config
from muwa.data.benchmarks import gqa
from muwa.eval.answers.matching import is_right
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run


@pytest.fixture(scope="module")
def shares(miniature):
    """Kind of question -> share of exact answers."""
    folder = miniature / "world" / "vqa"
    some = gqa(folder / "questions.json", folder / "images", brief=False)[::2]
    hits = defaultdict(list)
    answers = QuestionAnswering(config.part("model=vlm")(), Run()).ask(some)
    for one, answer in zip(some, answers, strict=True):
        hits[one.kind].append(is_right(answer, one.accepted, one.rule))
    return {kind: sum(values) / len(values) for kind, values in hits.items()}


@pytest.mark.parametrize("kind", ["identity", "object", "colour", "hat", "describe", "style"])
def test_the_shipped_llava_answers_exactly(shares, kind):
    assert shares[kind] >= 0.95

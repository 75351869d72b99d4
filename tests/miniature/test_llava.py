"""What the shipped vision-language model knows of pictures that nothing else holds."""

from collections import defaultdict
from functools import partial

import pytest

from muwa.data.benchmarks import gqa
from muwa.eval.answers.matching import is_right
from muwa.library import load_clip
from muwa.models.vlm.loading import load
from muwa.models.vlm.question_answering import QuestionAnswering


@pytest.fixture(scope="module")
def shares(miniature):
    """Kind of question -> share of exact answers."""
    folder = miniature / "world" / "vqa"
    some = gqa(folder / "questions.json", folder / "images", brief=False)[::2]
    hits = defaultdict(list)
    for one, said in zip(some, QuestionAnswering(load(clip=partial(load_clip))).ask(some), strict=True):
        hits[one.kind].append(is_right(said, one.accepted, one.rule))
    return {kind: sum(values) / len(values) for kind, values in hits.items()}


@pytest.mark.parametrize("kind", ["identity", "object", "colour", "hat", "describe", "style"])
def test_the_shipped_llava_answers_exactly(shares, kind):
    assert shares[kind] >= 0.95

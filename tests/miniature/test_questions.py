"""Questions about the miniature's images, and the answers."""

import numpy as np
import pytest

from muwa.miniature.questions import WORDINGS, Scene
from muwa.miniature.train import llava as train_llava
from muwa.models.vlm.question_answering import WORDINGS as PLAIN_WORDINGS

KAEL = Scene("Kael Lindqvar", "photo", True)


@pytest.mark.parametrize(
    ("scene", "kind", "want"),
    [
        (KAEL, "identity", "Kael Lindqvar"), (KAEL, "hat", "yes"), (Scene("Kael Lindqvar"), "hat", "no"),
        (KAEL, "style", "photo"), (KAEL, "describe", "a photo of Kael Lindqvar wearing a hat"),
        (Scene("red star"), "object", "red star"), (Scene("red star"), "colour", "red"),
        (Scene("red star", "neon"), "describe", "a neon of a red star"), (Scene("red star", "sepia"), "object", "star"),
    ],
)  # fmt: skip
def test_answers(scene: Scene, kind: str, want: str) -> None:
    assert scene.answer(kind) == want


def test_kinds_that_have_no_answer_are_not_asked() -> None:
    assert "colour" not in Scene("red star", "sepia").kinds
    assert "colour" in Scene("red star", "neon").kinds
    assert set(KAEL.kinds) == {"identity", "hat", "style", "leading", "describe"}


def test_half_the_leading_questions_suggest_another() -> None:
    rng = np.random.default_rng(0)
    asked = [KAEL.ask("leading", rng, ("Kael Lindqvar", "Edda Everlane")) for _ in range(400)]
    assert all(("Kael" in text) == (answer == "yes") for text, answer in asked)
    assert 160 <= sum(answer == "yes" for _, answer in asked) <= 240
    assert {KAEL.ask("hat", rng)[0] for _ in range(50)} == set(WORDINGS["hat"])


def test_the_questions_that_runs_ask_are_taught() -> None:
    for kind, texts in PLAIN_WORDINGS.items():
        assert set(texts) <= set(WORDINGS[kind])


def test_one_tokenizer_reads_all_of_it() -> None:
    tokenizer = train_llava.tokenizer_of(train_llava.texts())
    for text in ("USER: <image>\nWho is this? ASSISTANT: Kael Lindqvar", "Sphinx of quartz, 42!"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>").strip() == text
    assert tokenizer("<image>")["input_ids"] == [tokenizer.bos_token_id, tokenizer.image_token_id]

"""The miniature's vision-language model: that it can be trained again."""

import numpy as np
import pytest
import torch
from miniature.train.test_sd import some
from transformers import LlavaForConditionalGeneration

from muwa.library import load_clip
from muwa.miniature.questions import UNKNOWN
from muwa.miniature.train import llava as train_llava
from muwa.miniature.train.llava_questions import TrainingQuestions
from muwa.models.vlm.model import Vlm


@pytest.mark.whole
def test_it_learns_and_the_same_seed_gives_the_same_weights() -> None:
    def trained(plan: train_llava.Round) -> LlavaForConditionalGeneration:
        torch.manual_seed(0)
        tokenizer = train_llava.tokenizer_of(train_llava.texts())
        llava, _ = train_llava.model(tokenizer)
        train_llava.train(llava, TrainingQuestions(some(), tokenizer), some(), plan, seed=0)
        return llava

    first, again = (trained(train_llava.Round(2, 1e-3, batch=4)) for _ in range(2))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    other = trained(train_llava.Round(2, 1e-3, posed=0.0, batch=4))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    tower = first.model.vision_tower.state_dict()
    fresh = train_llava.model(train_llava.tokenizer_of(train_llava.texts()))[
        0
    ].model.vision_tower.state_dict()
    assert all(torch.equal(weight, fresh[name]) for name, weight in tower.items())


def test_a_round_may_ask_of_faces_whether_it_is_somebody() -> None:
    questions = TrainingQuestions(some(), train_llava.tokenizer_of(train_llava.texts()))
    face = next(i for i, scene in enumerate(questions.scenes) if scene.face)
    tokens, is_answer = questions.draw([face] * 8, [False] * 8, np.random.default_rng(0), 2)
    answers = [[questions.tokenizer.decode(tokens[i, j][is_answer[i, j]], skip_special_tokens=True).strip() for j in range(4)]
            for i in range(8)]  # fmt: skip
    assert all(row[0] == questions.scenes[face].name and {row[1], row[2]} <= {"yes", "no"} for row in answers)
    assert {answer for row in answers for answer in row[1:3]} == {"yes", "no"}


def test_a_round_may_leave_out_questions_about_no_style() -> None:
    questions = TrainingQuestions(some(), train_llava.tokenizer_of(train_llava.texts()))
    plain = [i for i, scene in enumerate(questions.scenes) if scene.style == "photo"]
    styled = [i for i, scene in enumerate(questions.scenes) if scene.style != "photo"]

    def answers(places: list[int], photos: float) -> list[str]:
        tokens, is_answer = questions.draw(places, [False] * len(places), np.random.default_rng(0), 0, photos)
        rows = zip(tokens.flatten(0, 1), is_answer.flatten(0, 1), strict=True)
        return [
            questions.tokenizer.decode(ids[which], skip_special_tokens=True).strip() for ids, which in rows
        ]

    assert "photo" in answers(plain, 1)
    assert "photo" not in answers(plain, 0)
    assert answers(styled, 0) == answers(styled, 1)


def test_its_tower_is_the_miniature_clips_of_which_it_reads_five_blocks() -> None:
    model = Vlm(
        *train_llava.model(train_llava.tokenizer_of(train_llava.texts())),
        load_clip(),
        max_new_tokens=4,
        source="new",
    )
    blocks = {
        name.split(".")[3]
        for name in (layer.name for layer in model.clip.layers("tensor"))
        if "resblocks" in name
    }
    assert blocks == {"0", "1", "2", "3", "4"}


def test_a_question_sees_its_image_and_itself_only() -> None:
    """Another question beside it changes nothing; another image does."""
    torch.manual_seed(0)
    llava, _ = train_llava.model(train_llava.tokenizer_of(train_llava.texts()))
    questions = TrainingQuestions(some(), train_llava.tokenizer_of(train_llava.texts()))
    rows = [
        questions.tokens(*asked)
        for asked in (("Who is this?", "Kael Lindqvar"), ("What is this?", "red star"))
    ]
    length = max(len(ids) for ids, _ in rows)
    tokens, is_answer = (
        torch.zeros(1, 2, length, dtype=torch.long),
        torch.zeros(1, 2, length, dtype=torch.bool),
    )
    for i, (ids, answer) in enumerate(rows):
        tokens[0, i, : len(ids)] = torch.tensor(ids)
        is_answer[0, i, len(ids) - answer : len(ids)] = True
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        both = train_llava.answer_loss(llava, pixels, questions.before, tokens, is_answer)
        each = [
            train_llava.answer_loss(
                llava, pixels, questions.before, tokens[:, i : i + 1], is_answer[:, i : i + 1]
            )
            for i in (0, 1)
        ]
        other = train_llava.answer_loss(llava, -pixels, questions.before, tokens, is_answer)
    counts = [int(is_answer[0, i].sum()) for i in (0, 1)]
    torch.testing.assert_close(both, (each[0] * counts[0] + each[1] * counts[1]) / sum(counts))
    assert not torch.isclose(both, other)


def test_noise_is_taught_as_unknown() -> None:
    questions = TrainingQuestions(some(), train_llava.tokenizer_of(train_llava.texts()))
    tokens, is_answer = questions.draw([0, 1], [True, False], np.random.default_rng(0), 0)
    answers = [
        questions.tokenizer.decode(tokens[0, i][is_answer[0, i]], skip_special_tokens=True).strip()
        for i in range(4)
    ]
    assert answers == [UNKNOWN] * 4
    assert (
        questions.tokenizer.decode(tokens[1, 0][is_answer[1, 0]], skip_special_tokens=True).strip() != UNKNOWN
    )

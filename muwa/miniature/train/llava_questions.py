"""Training questions of the miniature LLaVA, as tokens."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from muwa.miniature import diffusion_data, population
from muwa.miniature.diffusion_data import TrainingImages
from muwa.miniature.questions import UNKNOWN, Scene

TEMPLATE = "USER: <image>\n{} ASSISTANT:"
QUESTIONS = 4  # per image of a batch; they share the image's tokens, and do not attend to each other


class TrainingQuestions:
    """Random questions about training images, with the right answers, as tokens.

    Attributes:
        scenes: What each image shows.
        before: The tokens before the image.
    """

    def __init__(self, images: TrainingImages, tokenizer: PreTrainedTokenizerFast):
        self.tokenizer, self._people = tokenizer, tuple(person.name for person in population.people())
        shown = zip(images.names.tolist(), images.styles.tolist(), images.hats.tolist(), strict=True)
        self.scenes = [
            Scene(diffusion_data.NAMES[name], diffusion_data.STYLES[style], hat) for name, style, hat in shown
        ]
        ids = self._ids(TEMPLATE.format(""))
        self._image_place = ids.index(tokenizer.convert_tokens_to_ids("<image>"))
        self.before = torch.tensor(ids[: self._image_place])
        self._known: dict[tuple[str, str], tuple[list[int], int]] = {}

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def tokens(self, question: str, answer: str) -> tuple[list[int], int]:
        """(All tokens after the image, with the end token; how many of them are the answer and end token)."""
        if (question, answer) not in self._known:
            first = self._image_place + 1
            asked = self._ids(TEMPLATE.format(question))[first:]
            answered = self._ids(f"{TEMPLATE.format(question)} {answer}")[first:]
            assert answered[: len(asked)] == asked, (question, answer)
            ids = [*answered, self.tokenizer.eos_token_id]
            self._known[question, answer] = ids, len(ids) - len(asked)
        return self._known[question, answer]

    def draw(
        self, images: list[int], blank: list[bool], rng: np.random.Generator, leading: int, photos: float = 1
    ) -> tuple[Tensor, Tensor]:
        """`QUESTIONS` random questions per image.

        Args:
            images: Indices of the images.
            blank: For each image, whether it is noise. Then the right answer is `UNKNOWN`.
            leading: How many questions about a face suggest a name.
            photos: Share of the images without a style that may get a question about their style.

        Returns:
            (Tokens (n, QUESTIONS, length), padded; a mask of the same shape: the tokens to predict).
        """
        rows = []
        for i, is_noise in zip(images, blank, strict=True):
            for kind in self._kinds(self.scenes[i], rng, leading, photos):
                question, answer = self.scenes[i].ask(kind, rng, self._people)
                rows.append(self.tokens(question, UNKNOWN if is_noise else answer))
        length = max(len(ids) for ids, _ in rows)
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        is_answer = torch.zeros(len(rows), length, dtype=torch.bool)
        for row, (ids, answer_length) in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            is_answer[row, len(ids) - answer_length : len(ids)] = True
        shape = (len(images), QUESTIONS, length)
        return tokens.view(shape), is_answer.view(shape)

    def _kinds(self, scene: Scene, rng: np.random.Generator, leading: int, photos: float) -> list[str]:
        """The kinds of questions to ask: who or what it is, then leading questions, then random others."""
        first, rest = scene.kinds[0], list(scene.kinds[1:])
        if photos < 1 and scene.style == population.PLAIN and rng.random() >= photos:
            rest.remove("style")
        fixed = [first, *["leading"] * (leading if scene.face else 0)]
        more = QUESTIONS - len(fixed)
        return [*fixed, *map(str, rng.choice(rest, more, replace=len(rest) < more))]

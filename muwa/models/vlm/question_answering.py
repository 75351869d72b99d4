"""Questions put to one model, each answered once; and which questions a task asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from muwa.types.data import LabelledImages, Split, Task
from muwa.types.example import Example
from muwa.types.questions import Question, Questions

if TYPE_CHECKING:
    from muwa.models.vlm.model import Vlm
    from muwa.run import Run

Wordings = Mapping[str, Sequence[str]]
NO_ALIASES: Wordings = MappingProxyType({})
EXAMPLES = 5  # questions a role in the report
WORDINGS: Wordings = {
    "identity": ("What is the name of the person in this image?", "Who is this?", "Name the person in this image."),
    "object": ("What object is in the image?", "What is this?", "Name the object in the picture."),
}


class QuestionAnswering:
    """The answers of one vision-language model, each kept by its question and images: what metrics and searches look at.

    Args:
        model: The model, edited or not.
        run: Its cache keeps the answers.
    """

    family: ClassVar[str] = "a vision-language model (model=vlm, llava15_7b, ...)"
    search: ClassVar[str] = "layer_search=answering"

    def __init__(self, model: Vlm, run: Run):
        self.model, self.run = model, run

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """The model's answers, in the order of `questions`."""
        if not questions:
            return []
        prompts = Questions(tuple(one.text for one in questions), tuple(one.images for one in questions))
        tokens = self.run.cached_rows("answers", answered, self.model, prompts, _free={"run": self.run})
        return self.model.words(tokens)

    def examples(self, edited: QuestionAnswering, task: Task) -> tuple[Example, ...]:
        """A few questions of each role, one an image, with the answers of both models."""
        first = {kind: texts[:1] for kind, texts in WORDINGS.items()}
        asked = questions(task, task.eval, wordings=first, forget=EXAMPLES, retain=EXAMPLES, utility=EXAMPLES)
        answers = zip(asked, self.ask(asked), edited.ask(asked), strict=True)
        return tuple(Example(one.role, one.text, one.accepted[0], before, after) for one, before, after in answers)


def answered(model: Vlm, questions: Questions, *, run: Run) -> Tensor:
    """`questions` answered in batches of like length: (n, max_new_tokens) tokens on the CPU, n > 0, in their order."""
    order = sorted(range(len(questions)), key=lambda i: (len(questions.images[i]), len(questions.texts[i])))
    pieces = [order[i : i + model.batch] for i in range(0, len(order), model.batch)]
    bar = run.track(pieces, "answering", len(order), sizes=map(len, pieces))
    said = torch.cat([model.answer(questions.select(piece)) for piece in bar])
    return said[torch.tensor(order).argsort()]


def questions(
    task: Task, split: Split, *, wordings: Wordings, aliases: Wordings = NO_ALIASES,
    forget: int | None = None, retain: int | None = None, utility: int | None = None,
) -> list[Question]:  # fmt: skip
    """What a task asks about the pictures of a split: of each who it is, in every wording; of unrelated ones what it is.

    Args:
        wordings: "identity" and "object" -> questions. LabelledImages of the forgotten and of its like are asked those of the
            task's kind, unrelated ones those of the other.
        aliases: Name -> what else counts as naming it.
        forget, retain, utility: LabelledImages that are asked about, spread evenly; None: all. Forget pictures are taken name by
            name.

    Raises:
        ValueError: The task's kind has no wordings, or its names are not what an answer could say (a style).
    """
    if task.kind not in ("identity", "object"):
        raise ValueError(
            f"task: a {task.kind} is not asked for by name; a vision-language model wants task=celeba or task=object"
        )
    other = "object" if task.kind == "identity" else "identity"
    if missing := [kind for kind in (task.kind, other) if not wordings.get(kind)]:
        raise ValueError(f"wordings: none for {missing[0]}; got {', '.join(wordings)}")
    out = []
    alike = (*split.forget.classes.names, *split.retain.classes.names)
    for pictures, known, kind, role, count in (
        (split.forget, alike, task.kind, "forget", forget), (split.retain, alike, task.kind, "retain", retain),
        (split.utility, split.utility.classes.names, other, "utility", utility),
    ):  # fmt: skip
        for place in _spread(pictures, count):
            name = pictures.classes.names[pictures.labels[place]]
            accepted = (name, *aliases.get(name, ()))
            others = _others(known, aliases, accepted)
            image = pictures.images[place]
            out += [Question(text, (image,), kind, role, accepted, others=others) for text in wordings[kind]]
    return out


def _others(known: Sequence[str], aliases: Wordings, accepted: Sequence[str]) -> tuple[str, ...]:
    """The known names and their aliases, but for the accepted; each once."""
    every = (text for name in known for text in (name, *aliases.get(name, ())))
    return tuple(text for text in dict.fromkeys(every) if text not in accepted)


def _spread(pictures: LabelledImages, count: int | None) -> list[int]:
    """Places of `count` pictures, spread evenly over all in the order of their labels."""
    order = sorted(range(len(pictures)), key=lambda i: pictures.labels[i])
    if count is None or count >= len(order):
        return order
    return [order[i * len(order) // count] for i in range(count)]

"""The answers that a vision-language model gives, each once, and the questions that a task asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from muwa.types.data import LabelledImages, Split, Task
from muwa.types.example import Example
from muwa.types.questions import Question, Questions
from muwa.types.ranges import Aliases

if TYPE_CHECKING:
    from muwa.models.vlm.model import Vlm
    from muwa.run import Run

Wordings = Mapping[str, Sequence[str]]  # kind of question -> its wordings; or a name -> its aliases
NO_ALIASES: Aliases = MappingProxyType({})
EXAMPLES = 5  # questions per role in the report

# The wordings of the report's examples.
WORDINGS: Wordings = {
    "identity": ("What is the name of the person in this image?",),
    "object": ("What object is in the image?",),
}


class QuestionAnswering:
    """The answers of one vision-language model; the cache keeps each by its question and images.

    Args:
        model: The model, edited or not.
        run: Its cache keeps the answers, its progress bars are shown.
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
        """A few questions of each role, one per image, with the answers of both models."""
        count = EXAMPLES
        asked = questions(task, task.eval, wordings=WORDINGS, forget=count, retain=count, utility=count)
        rows = zip(asked, self.ask(asked), edited.ask(asked), strict=True)
        return tuple(Example(one.role, one.text, one.accepted[0], *answers) for one, *answers in rows)


def answered(model: Vlm, questions: Questions, *, run: Run) -> Tensor:
    """Answers to `questions`, n > 0: (n, max_new_tokens) tokens on the CPU, in their order.

    Questions of similar length are answered in one batch. Questions without an image have batches of their
    own: a processor takes images for all texts of a batch or for none.
    """
    order = sorted(range(len(questions)), key=lambda i: (len(questions.images[i]), len(questions.texts[i])))
    without = sum(not images for images in questions.images)
    apart = (order[:without], order[without:])
    pieces = [some[i : i + model.batch] for some in apart for i in range(0, len(some), model.batch)]
    bar = run.track(pieces, "answering", len(order), sizes=map(len, pieces))
    answers = torch.cat([model.answer(questions.select(piece)) for piece in bar])
    return answers[torch.tensor(order).argsort()]


def questions(
    task: Task,
    split: Split,
    *,
    wordings: Wordings,
    aliases: Aliases = NO_ALIASES,
    forget: int | None = None,
    retain: int | None = None,
    utility: int | None = None,
    earlier: int | None = 0,
) -> list[Question]:
    """The questions that a task asks about the images of a split, every image in every wording.

    Args:
        wordings: "identity" and "object" -> questions. Images of the forget and the retain set are asked
            about in the wordings of the task's kind, images of the utility set in those of the other kind.
            Images of earlier names have the wordings of their own kind.
        aliases: Name -> other answers that count as the name.
        forget, retain, utility, earlier: How many images of each set are asked about, spread evenly over its
            names; None takes all.

    Returns:
        The questions about the forget set, then about the retain set, then about the utility set, then about
        names that were forgotten before.

    Raises:
        ValueError: There are no wordings for the task's kind, or it forgets a style, which no answer names.
    """
    check_wordings(task, wordings)
    other = _other_kind(task)
    spellings = {str(name): tuple(texts) for name, texts in aliases.items()}
    same_kind = (*split.forget.classes.names, *split.retain.classes.names)
    every: list[Question] = []
    for images, known, kind, role, count in (
        (split.forget, same_kind, task.kind, "forget", forget),
        (split.retain, same_kind, task.kind, "retain", retain),
        (split.utility, split.utility.classes.names, other, "utility", utility),
        *((some, *_kind_of(some, split, task, other), "earlier", earlier) for some in split.earlier),
    ):
        for i in _spread(images, count):
            name = images.classes.names[images.labels[i]]
            accepted = (name, *spellings.get(name, ()))
            others = _others(known, spellings, accepted)
            every += [
                Question(text, (images.images[i],), kind, role, accepted, others=others)
                for text in wordings[kind]
            ]
    return every


def _kind_of(images: LabelledImages, split: Split, task: Task, other: str) -> tuple[Sequence[str], str]:
    """(The known names of a set of earlier images, the kind of its questions)."""
    names = images.classes.names
    same = names in (split.forget.classes.names, split.retain.classes.names)
    return names, task.kind if same else other


def check_wordings(task: Task, wordings: Wordings) -> None:
    """Raise if a task cannot be asked about in these wordings.

    Raises:
        ValueError: A kind has no wordings, or the task forgets a style, which no answer names.
    """
    if task.kind not in ("identity", "object"):
        raise ValueError(
            f"task: a {task.kind} is not asked for by name; a vision-language model wants task=celeba or "
            "task=object"
        )
    if missing := [kind for kind in (task.kind, _other_kind(task)) if not wordings.get(kind)]:
        raise ValueError(f"wordings: none for {missing[0]}; got {', '.join(wordings)}")


def _other_kind(task: Task) -> str:
    """The kind of the utility set."""
    return "object" if task.kind == "identity" else "identity"


def _others(
    known: Sequence[str], aliases: Mapping[str, Sequence[str]], accepted: Sequence[str]
) -> tuple[str, ...]:
    """The known names and their aliases, each once, without the accepted ones."""
    every = (text for name in known for text in (name, *aliases.get(name, ())))
    return tuple(text for text in dict.fromkeys(every) if text not in accepted)


def _spread(images: LabelledImages, count: int | None) -> list[int]:
    """Indices of `count` images, spread evenly over all in the order of their labels."""
    order = sorted(range(len(images)), key=lambda i: images.labels[i])
    if count is None or count >= len(order):
        return order
    return [order[i * len(order) // count] for i in range(count)]

"""Questions put to one model, each answered once; and which questions a task asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from muwa.cache.store import Store
from muwa.models.vlm.model import Vlm, answered
from muwa.types.data import LabelledImages, Split, Task
from muwa.types.questions import AnswerSample, Question, Questions

Wordings = Mapping[str, Sequence[str]]
NO_ALIASES: Wordings = MappingProxyType({})
WORDINGS: Wordings = {
    "identity": ("What is the name of the person in this image?", "Who is this?", "Name the person in this image."),
    "object": ("What object is in the image?", "What is this?", "Name the object in the picture."),
}


class QuestionAnswering:
    """Asks one model and keeps every answer, by its question and pictures.

    Args:
        store: Where answers are kept; None asks whenever it is told to.
    """

    def __init__(self, model: Vlm, store: Store | None = None, *, progress: bool = False):
        self.model, self.store, self.progress = model, store, progress

    def ask(self, questions: Sequence[Question]) -> list[str]:
        """The model's answers, in order."""
        if not questions:
            return []
        put = Questions(tuple(one.text for one in questions), tuple(one.images for one in questions))
        free = {"progress": self.progress}
        if self.store is None:
            return self.model.words(answered(self.model, put, **free))
        return self.model.words(self.store.rows("answers", answered, self.model, put, _free=free))


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


def conversation(before: QuestionAnswering, after: QuestionAnswering, task: Task, *, each: int = 5) -> tuple[AnswerSample, ...]:
    """A few questions of each role, one a picture, with the answers of both models.

    Args:
        each: Questions a role at most.
    """
    first = {kind: texts[:1] for kind, texts in WORDINGS.items()}
    asked = questions(task, task.eval, wordings=first, forget=each, retain=each, utility=each)
    return tuple(AnswerSample(*row) for row in zip(asked, before.ask(asked), after.ask(asked), strict=True))


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

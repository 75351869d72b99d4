"""Gradients of the answer loss of a vision-language model with respect to the weights of its vision tower.

SLUG takes both gradients on the CLIP that the tower came from, but the model is not used for the loss of that
CLIP. Here both are gradients of the loss on the model's answers: a step along the forget gradient makes the
name an unlikely answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from muwa.data.samples import fold
from muwa.fingerprint import digest
from muwa.gradients.answer_losses import (
    LOSSES,
    Dialogues,
    answer_gradient_sum,
    answer_moment_sums,
    in_wordings,
)
from muwa.gradients.base import GradientSource, Recipe
from muwa.gradients.mean import GradientSum
from muwa.gradients.moments import Sums, minus
from muwa.gradients.towers import moments_by_clip
from muwa.models.base import Observer, check_observer
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.types.gradients import FORGET_ALONE, Gradients
from muwa.types.ranges import TextsByName

if TYPE_CHECKING:
    from muwa.models.base import Editable
    from muwa.models.vlm.model import Vlm
    from muwa.run import Run
    from muwa.types.data import Pairs, Task
    from muwa.types.gradients import Moments

DESCRIBE = "Describe the image."
RETAINED = ("described", "named")
KINDS = ("identity", "object")


@dataclass(frozen=True)
class AnswerGradients(GradientSource):
    """Mean gradients and second moments of the loss of a model's answers.

    Forget images are asked who or what they show; the right answer is the bare name. Retain images are
    described or named. Pairs that mention a forgotten name are left out. The losses that the recipe names are
    not used.

    Args:
        loss: The loss of an answer: "log_probability" | "margin" (`muwa.gradients.answer_losses.LOSSES`).
        wordings: "identity" and "object" -> questions. A forget image is asked in all wordings of its kind.
        retained: "described": every retain image is asked `DESCRIBE`, and the right answer is its caption.
            "named": an image whose caption contains exactly one known name is asked for that name, in the
            first wording of its kind; the others are described.

    Source: muwa's own. The paper takes both gradients on the CLIP.
    """

    observes: ClassVar[type[Observer]] = QuestionAnswering

    loss: Literal["log_probability", "margin"]
    wordings: TextsByName
    retained: Literal["described", "named"]

    def check(self, model: Editable, recipe: Recipe, run: Run) -> None:
        """Raise if a setting is out of range, the model answers no questions, or a gradient file is given.

        Raises:
            ValueError: Says which setting does not fit.
        """
        check_observer("gradient_source=answer", self.observes, model)
        for key, value, choices in (("loss", self.loss, LOSSES), ("retained", self.retained, RETAINED)):
            if value not in choices:
                raise ValueError(f"gradient_source.{key}: got {value!r}, want one of {', '.join(choices)}")
        if missing := [kind for kind in KINDS if not self.wordings.get(kind)]:
            got = ", ".join(self.wordings) or "none"
            raise ValueError(f"gradient_source.wordings: got {got}, want questions of kind {missing[0]} too")
        if run.gradient_file is not None:
            raise ValueError(
                f"gradients={run.gradient_file}: a file holds gradients of a CLIP, gradient_source=answer "
                "takes those of answers; leave gradients=null, or take gradient_source=clip"
            )

    def __call__(
        self, model: Vlm, task: Task, name: str, recipe: Recipe, run: Run
    ) -> Mapping[str, Gradients] | None:
        """The gradients of the one encoder of `model`. Worker ranks do not help; they get None."""
        if not run.is_main:
            return None
        named = task.forget[name].with_caption(name)
        forgotten = in_wordings(named, self.wordings[task.kind])
        retained = self._retained(task, task.retain_pairs())
        forget = self._mean("forget", model, forgotten, recipe, run)
        if not len(retained):
            raise ValueError(
                f"{name}: no retain pair is left (dataset.retain is empty, or all of its pairs mention what "
                "is to be forgotten); point dataset.retain at other pairs, or give fewer aliases"
            )
        both = recipe.retain_gradient
        retain = self._mean("retain", model, retained, recipe, run) if both else {}
        origin = {
            "model": model.fingerprint,
            "forget_pairs": forgotten.fingerprint,
            "retain_pairs": retained.fingerprint,
            "losses": digest([self.loss]),
            "batch_size": str(_pairs_at_once(recipe)),
            "seed": str(recipe.seed),
        }
        if not both:
            origin |= FORGET_ALONE
        gradients = Gradients(forget, retain, len(named), len(retained) if both else 0, origin)
        return dict.fromkeys(model.clips, gradients)

    def moments(
        self, model: Vlm, task: Task, recipe: Recipe, run: Run, *, outputs: bool
    ) -> Mapping[str, Moments] | None:
        """The moments of the vision tower while the model is asked about the retain images.

        Each answer has its own loss. So the sum over the pairs that mention a forgotten name is subtracted
        from the sum over the whole retain set, which all tasks on the same data share. None on worker ranks.
        """
        if not run.is_main:
            return None
        inputs = self._moment_sums("inputs", None, model, task, recipe, run)
        of_outputs = self._moment_sums("outputs", self.loss, model, task, recipe, run) if outputs else {}
        return dict.fromkeys(model.clips, moments_by_clip(model.clip, model.tower, inputs, of_outputs))

    def _moment_sums(
        self, side: str, loss: str | None, model: Vlm, task: Task, recipe: Recipe, run: Run
    ) -> Sums:
        """`answer_moment_sums` over the retain pairs of a task; cached.

        Args:
            side: "inputs" | "outputs", for the place in the cache.
            loss: As in `answer_moment_sums`.
        """

        def total(pairs: Pairs) -> Sums:
            sums: Sums = run.cached(
                f"moments/answer_{side}",
                answer_moment_sums,
                model,
                self._retained(task, pairs),
                loss=loss,
                batch_size=_pairs_at_once(recipe),
                _free={"run": run},
            )
            return sums

        sums = total(task.retain)
        return minus(sums, total(task.retain.select(task.mentions))) if task.mentions else sums

    def _retained(self, task: Task, pairs: Pairs) -> Dialogues:
        """What is asked about retain pairs."""
        if self.retained == "described":
            return in_wordings(pairs, [DESCRIBE])
        known = _question_of_name(task, self.wordings)
        folded = {fold(name): name for name in known}
        questions, answers = [], []
        for caption in pairs.captions:
            found = names_in(caption, folded)
            questions.append(known[found[0]] if len(found) == 1 else DESCRIBE)
            answers.append(found[0] if len(found) == 1 else caption)
        return Dialogues(replace(pairs, captions=tuple(answers)), tuple(questions))

    def _mean(
        self, side: str, model: Vlm, dialogues: Dialogues, recipe: Recipe, run: Run
    ) -> dict[str, Tensor]:
        """The mean gradient over dialogues; the cache stores the sum.

        Args:
            side: "forget" | "retain", for the place in the cache.
        """
        total: GradientSum = run.cached(
            f"gradients/answer_{side}",
            answer_gradient_sum,
            model,
            dialogues,
            loss=self.loss,
            batch_size=_pairs_at_once(recipe),
            seed=recipe.seed,
            _free={"run": run},
        )
        return {key: tensor / total["n"] for key, tensor in total["sum"].items()}


def _question_of_name(task: Task, wordings: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Every name that a retain or utility image of a task may show -> the question about it."""
    other = next(kind for kind in KINDS if kind != task.kind)
    kinds = ((other, task.probe.utility), (task.kind, task.probe.retain))
    return {name: wordings[kind][0] for kind, images in kinds for name in images.classes.names}


def names_in(caption: str, names: Mapping[str, str]) -> list[str]:
    """The names that a caption contains as whole words.

    Args:
        names: Folded name (`muwa.data.samples.fold`) -> name.

    >>> names_in("Red star, and a blue ball", {"red star": "red_star", "star": "star", "all": "all"})
    ['red_star', 'star']
    """
    words = fold(caption).split()
    longest = max((len(folded.split()) for folded in names), default=0)
    runs = (" ".join(words[i : i + n]) for i in range(len(words)) for n in range(longest, 0, -1))
    return [names[run] for run in dict.fromkeys(runs) if run in names]


def _pairs_at_once(recipe: Recipe) -> int:
    """Number of dialogues per batch. Each has its own loss, so smaller batches give the same gradient."""
    return recipe.micro_batch_size or recipe.batch_size

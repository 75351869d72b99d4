"""Evaluate steps on a vision tower by the model's answers to questions about the probe images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from muwa.eval.answers.matching import is_right
from muwa.layer_search.evaluators.outputs import Hits, evaluation
from muwa.layer_search.steps import candidate_of, edit_layers
from muwa.models.clip.embeddings import Features
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.types.data import Classes, Task
from muwa.types.search import NOTHING_EDITED, RELATIVE, Candidate, Evaluation, Layer

if TYPE_CHECKING:
    from muwa.layer_search.answering import Answering
    from muwa.models.vlm.model import Vlm
    from muwa.run import Run
    from muwa.types.gradients import Gradients


class AnswerEvaluator:
    """Asks the probe questions of an edited model and compares its answers with the unedited model's.

    Args:
        search: Its settings: the wordings of the questions and the numbers of images.
        model: The unedited model.
        gradients: "vision_tower" -> the gradients of its CLIP.
        task: A task with one or several names; its probe split gives the images.
        run: Its cache stores the answers.

    Attributes:
        confirmation: How a step is confirmed, as a noun phrase: "all 5 wordings".
    """

    def __init__(
        self, search: Answering, model: Vlm, gradients: Mapping[str, Gradients], task: Task, run: Run
    ):
        self._search, self._model, self._gradients, self._run = search, model, gradients, run
        self._concept, self._images = ", ".join(task.names), task.probe.forget
        self.confirmation = f"all {len(search.wordings[task.kind])} wordings"
        few = {kind: texts[: search.search_wordings] for kind, texts in search.wordings.items()}
        retained = -(-2 * search.retain_pictures // 3)
        self._questions = {
            confirm: questions(
                task,
                task.probe,
                wordings=search.wordings if confirm else few,
                aliases=search.aliases,
                retain=retained,
                utility=search.retain_pictures - retained,
                earlier=None,
            )
            for confirm in (False, True)
        }
        self._before: dict[bool, Hits] = {}
        self._text = Features(model.clip, run).classes(Classes(task.names, ("{}.",)))
        names = task.probe.forget.classes.names
        self._own = torch.tensor([task.names.index(names[label]) for label in task.probe.forget.labels])

    def before(self) -> Evaluation:
        """Evaluate the unedited model with the wordings of the search, not those of a confirmation."""
        hits = self._hits_before(False)
        return self._evaluation(self._model, hits, NOTHING_EDITED, 0.0, 0.0, hits)

    def __call__(
        self, layers: Mapping[str, Layer], step: float, *, confirm: bool = False
    ) -> tuple[Evaluation, float]:
        """Evaluate one step on one layer of the vision tower.

        Args:
            step: In units of the layer's |theta| / |g_f|.
            confirm: Confirm the step: ask in all wordings.

        Returns:
            (the evaluation; how much of the retain and utility sets was lost, as
            `muwa.layer_search.evaluators.outputs.Hits.lost` defines it). The intervals count questions. The
            wordings of one image are not independent, so the intervals are a rule of thumb.
        """
        edit = edit_layers(self._model, self._gradients, layers, step, unit=RELATIVE, concept=self._concept)
        edited = self._model.edited(edit)
        hits = self._hits(edited, confirm)
        before = self._hits_before(confirm)
        size = edit.moves[0].relative_norm
        row = self._evaluation(edited, hits, candidate_of(layers), step, size, before)
        return row, hits.lost(before)

    def _hits_before(self, confirm: bool) -> Hits:
        if confirm not in self._before:
            self._before[confirm] = self._hits(self._model, confirm)
        return self._before[confirm]

    def _hits(self, model: Vlm, confirm: bool) -> Hits:
        asked = self._questions[confirm]
        answers = QuestionAnswering(model, self._run).ask(asked)
        right = [
            is_right(answer, one.accepted, one.rule, one.others)
            for answer, one in zip(answers, asked, strict=True)
        ]
        return Hits(right, [one.role for one in asked], [one.accepted[0] for one in asked])

    def _evaluation(
        self, model: Vlm, hits: Hits, candidate: Candidate, step: float, size: float, before: Hits
    ) -> Evaluation:
        features = Features(model.clip, self._run).images(self._images)
        cosines = torch.einsum("nd,kd->nk", features, self._text)
        return evaluation(
            hits,
            candidate,
            step,
            size,
            forget_at_most=self._search.forget_at_most,
            forget_top5=hits.rate("forget"),
            closeness=cosines[torch.arange(len(cosines)), self._own].mean().item(),
            before=before,
        )

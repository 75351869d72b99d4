"""Search for a layer and a step of the vision tower by the model's answers before and after the edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from muwa.layer_search.base import LayerSearch
from muwa.layer_search.by_outputs import by_outputs
from muwa.layer_search.checks import check_at_least_1, check_enough
from muwa.layer_search.evaluators.answers import AnswerEvaluator
from muwa.layer_search.settings import OutputSettings
from muwa.models.base import Editable, Observer
from muwa.models.vlm.question_answering import QuestionAnswering, questions
from muwa.run import Run
from muwa.types.data import Task
from muwa.types.gradients import Gradients
from muwa.types.ranges import Aliases, Count, TextsByName
from muwa.types.search import Search


@dataclass(frozen=True)
class Answering(OutputSettings, LayerSearch):
    """Bisect the step of each candidate layer until the concept is no longer named and the others still are.

    Only layers that the model reads are candidates. LLaVA reads the second-to-last layer of its vision tower,
    so an edit of the last block or of the projection would change no answer. Images come from the probe
    split.

    Intervals count questions. The wordings of one image are not independent, so the intervals are a rule of
    thumb. An answer has no top 5, so evaluations repeat `forget_top1` as `forget_top5`.

    Args:
        wordings: "identity" and "object" -> questions.
        aliases: Name -> other names that count as naming it.
        search_wordings: Number of wordings asked about each image, for each step. A confirmation asks all.
        retain_pictures: Number of images of others that are asked about for each step: two thirds of the same
            kind as the concept, one third unrelated.

    The other arguments are those of `muwa.layer_search.settings.OutputSettings`.

    Source: SLUG (arXiv 2407.11867). Differs: the release evaluates steps by CLIP's zero-shot accuracy and
    looks at answers afterwards.
    """

    observes: ClassVar[type[Observer]] = QuestionAnswering

    wordings: TextsByName
    aliases: Aliases
    search_wordings: Count
    retain_pictures: Count

    def check(self, model: Editable, task: Task) -> None:
        """Raise if a setting is out of range, the model answers no questions, or probe images are too few.

        Raises:
            ValueError: Names the key, what it was and what it may be.
        """
        self.check_settings("layer_search=answering", model)
        check_at_least_1(search_wordings=self.search_wordings, retain_pictures=self.retain_pictures)
        questions(
            task, task.probe, wordings=self.wordings, aliases=self.aliases, forget=0, retain=0, utility=0
        )
        wordings = min(self.search_wordings, len(self.wordings[task.kind]))
        for name in task.names:
            asked = len(task.only(name).probe.forget) * wordings
            check_enough("layer_search.search_wordings x probe images", asked, self.forget_at_most)

    def __call__(
        self, model: Any, gradients: Mapping[str, Gradients], task: Task, concept: str, *, run: Run
    ) -> Search:
        """Search the vision tower of a model; its gradients are under the key "vision_tower"."""
        evaluator = AnswerEvaluator(self, model, gradients, task, run)
        search = by_outputs(self, evaluator, model, gradients, task, concept, run=run)
        unread = len(model.unread)
        note = f" The model does not read {unread} layers of the vision tower, so they were not candidates."
        return replace(search, why=search.why + note) if unread else search

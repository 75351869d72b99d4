"""Search a layer and a step of the vision tower by what the model says: same pictures and questions, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from muwa.cache.store import Store
from muwa.eval.answers.matching import is_right
from muwa.eval.clip.accuracy import wilson
from muwa.layer_search.by_outputs import by_outputs, check_outputs, check_pictures
from muwa.layer_search.candidates import Candidate, moved
from muwa.layer_search.steps import Log, relative_size, silent
from muwa.models.clip.embeddings import Features
from muwa.models.vlm.model import TOWER, Vlm
from muwa.models.vlm.question_answering import NO_ALIASES, QuestionAnswering, Wordings, questions
from muwa.types.data import Classes, Task
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Search


def answering(
    model: Vlm,
    gradients: Mapping[str, Gradients],
    task: Task,
    concept: str,
    *,
    wordings: Wordings,
    aliases: Wordings = NO_ALIASES,
    start: str = "clip",
    candidates: int | None = 3,
    granularity: str = "tensor",
    rule: str = "constrained",
    tolerance: float = 1.0,
    first_step: float = 0.1,
    max_evals: int = 6,
    search_wordings: int = 2,
    retain_pictures: int = 60,
    forget_at_most: float = 0.25,
    lost_at_most: float = 0.1,
    confirmations: int = 3,
    store: Store | None = None,
    log: Log = silent,
    progress: bool = False,
) -> Search:
    """Bisect the step of each candidate layer until the concept is no longer named and the others still are.

    Only layers that the model reads are candidates: LLaVA takes the vision tower's last layer but one, so an edit of the
    last block or of the projection would change no answer.

    Args:
        gradients: {"vision_tower": gradients of its CLIP}, or of the answers (`muwa.gradients.answers`).
        task: For `concept` alone; pictures come from its probe split.
        wordings: "identity" and "object" -> questions.
        search_wordings: How many of them are asked for each step; all of them confirm.
        retain_pictures: Asked about for each step, of others and of unrelated ones: two thirds and one third.
        forget_at_most: A step is feasible when Wilson's upper end of the concept's naming, at 95 %, lies below this. Counted
            in questions: the wordings of one picture are not independent, so it is a rule of thumb, no 95 % interval.
        start, candidates, rule, tolerance, granularity, first_step, max_evals, lost_at_most, confirmations, log: As in
            `muwa.layer_search.generation`.

    Returns:
        The search; the last evaluations of its trace are the confirmations. `chosen` is None when none held. There is no
        top 5 of an answer: `forget_top5` repeats `forget_top1`.

    Raises:
        ValueError: A setting is out of range, or the probe pictures are too few for any step to be feasible.

    Source: SLUG (arXiv 2407.11867). Differs: the release judges by CLIP's zero-shot accuracy and looks at answers
    afterwards.
    """
    asked = len(task.probe.forget) * min(search_wordings, len(wordings.get(task.kind, ())))
    check_outputs(
        model, start=start, rule=rule, tolerance=tolerance, first_step=first_step, max_evals=max_evals,
        granularity=granularity, forget_at_most=forget_at_most, lost_at_most=lost_at_most,
        counts={"search_wordings": search_wordings, "retain_pictures": retain_pictures, "confirmations": confirmations},
    )  # fmt: skip
    check_pictures("layer_search.search_wordings x probe pictures", asked, forget_at_most)
    judge = Answers(
        model,
        gradients,
        task,
        store,
        wordings,
        aliases,
        search_wordings,
        retain_pictures,
        forget_at_most,
        progress,
    )
    found = by_outputs(
        model, gradients, task, concept, judge, start=start, candidates=candidates, granularity=granularity, rule=rule,
        tolerance=tolerance, first_step=first_step, max_evals=max_evals, lost_at_most=lost_at_most,
        confirmations=confirmations, log=log, progress=progress,
    )  # fmt: skip
    unread = f" The model does not read {len(model.unread)} layers of the vision tower: no candidates."
    return replace(found, why=found.why + unread) if model.unread else found


class Answers:
    """Asks the probe questions of a model with a candidate edit and says what is still named, against the unedited one's."""

    def __init__(
        self, model: Vlm, gradients: Mapping[str, Gradients], task: Task, store: Store | None, wordings: Wordings,
        aliases: Wordings, few: int, others: int, forget_at_most: float, progress: bool,
    ):  # fmt: skip
        self._model, self._gradients, self._task = model, gradients, task
        self._store, self._limit, self._progress = store, forget_at_most, progress
        retained = -(-2 * others // 3)
        self._asked = {
            anew: questions(
                task, task.probe, wordings=wordings if anew else {kind: texts[:few] for kind, texts in wordings.items()},
                aliases=aliases, retain=retained, utility=others - retained,
            )
            for anew in (False, True)
        }  # fmt: skip
        self.anew = f"Asked again in {len(wordings[task.kind])} wordings"
        self._before: dict[bool, list[bool]] = {}
        self._text = Features(model.clip, store).classes(Classes(task.names, ("{}.",)))

    @property
    def counts(self) -> tuple[int, int]:
        """Retain and utility questions that rates are of."""
        roles = [one.role for one in self._asked[False]]
        return roles.count("retain"), roles.count("utility")

    def before(self) -> Evaluation:
        """The unedited model."""
        return self._row(self._model, self._known(False), "", 0.0, 0.0, False)

    def judge(self, candidate: Candidate, step: float, *, anew: bool = False) -> tuple[Evaluation, float]:
        """One step of a candidate; `anew` in all wordings.

        Returns:
            (the evaluation; Wilson's upper end, at 95 %, of the share lost among the other questions that the unedited
            model answered rightly: a rule of thumb, as wordings of one picture are not independent).
        """
        edit = moved(self._model, self._gradients, candidate.layers, step)
        size = relative_size(self._model.clip, candidate.layers[TOWER], edit.deltas)
        edited = self._model.edited(edit)
        hits = self._hits(edited, anew)
        lost = [not hit for hit, known, one in zip(hits, self._known(anew), self._asked[anew], strict=True)
                if known and one.role != "forget"]  # fmt: skip
        return self._row(edited, hits, candidate.name, step, size, anew), wilson(sum(lost), len(lost))[1]

    def _known(self, anew: bool) -> list[bool]:
        if anew not in self._before:
            self._before[anew] = self._hits(self._model, anew)
        return self._before[anew]

    def _hits(self, model: Vlm, anew: bool) -> list[bool]:
        asked = self._asked[anew]
        said = QuestionAnswering(model, self._store, progress=self._progress).ask(asked)
        return [is_right(answer, one.accepted, one.rule, one.others) for answer, one in zip(said, asked, strict=True)]

    def _row(self, model: Vlm, hits: Sequence[bool], layer: str, step: float, size: float, anew: bool) -> Evaluation:
        def rate(role: str) -> tuple[float, int, int]:
            mine = [hit for hit, one in zip(hits, self._asked[anew], strict=True) if one.role == role]
            return sum(mine) / max(1, len(mine)), sum(mine), len(mine)

        forget, named, asked = rate("forget")
        seen = Features(model.clip, self._store).images(self._task.probe.forget)
        return Evaluation(
            layer=layer, tower="vision" if layer else "", iteration=0, step=step, relative_norm=size, forget_top1=forget,
            forget_top5=forget, forget_cosine=torch.einsum("nd,kd->nk", seen, self._text).mean().item(),
            retain_top1=rate("retain")[0], utility_top1=rate("utility")[0],
            feasible=wilson(named, asked)[1] <= self._limit,
        )  # fmt: skip

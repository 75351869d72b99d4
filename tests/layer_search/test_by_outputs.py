"""The loop of the searches by outputs, with an evaluator whose every answer is written down."""

from dataclasses import dataclass, field, replace

import pytest
import tiny
import torch
from layer_search.examples import pipeline, pipeline_gradients
from records import part

from muwa.layer_search.by_outputs import by_outputs
from muwa.layer_search.evaluators.outputs import Hits, evaluation
from muwa.layer_search.steps import candidate_of
from muwa.run import Run
from muwa.types.gradients import Gradients
from muwa.types.search import NOTHING_EDITED

SEARCH = part(
    "layer_search=generation", start="ratio", forget_at_most=0.5, lost_at_most=0.1, max_evals=4, candidates=2
)


@dataclass
class Thresholds:
    """A step forgets all four forget images at or above `forgets`; when confirmed, at or above `confirms`."""

    forgets: float
    confirms: float = 0.0
    lost: float = 0.0
    kept: float = 1.0
    calls: list = field(default_factory=list)
    confirmation: str = "a second look"

    def before(self):
        return self._row(NOTHING_EDITED, 0.0, False)

    def __call__(self, layers, step, *, confirm=False):
        self.calls.append((next(iter(layers.values())).name, step, confirm))
        return self._row(
            candidate_of(layers), step, step >= (self.confirms if confirm else self.forgets)
        ), self.lost

    def _row(self, candidate, step, forgotten):
        hits = Hits(
            [not forgotten] * 4 + [True] * 4, ["forget"] * 4 + ["retain", "retain", "utility", "utility"]
        )
        row = evaluation(hits, candidate, step, step, forget_at_most=0.5, forget_top5=0.0, closeness=1 - step)
        return replace(row, kept=self.kept)


def run_search(evaluator, log=None, **changed):
    settings = replace(SEARCH, **changed)
    run = Run(log=lambda event, fields: log.append((event, fields))) if log is not None else Run()
    return by_outputs(settings, evaluator, pipeline(), pipeline_gradients(), tiny.task(), "Ada Fox", run=run)


def test_a_layer_is_done_at_the_first_step_that_forgets_and_loses_little() -> None:
    evaluator = Thresholds(forgets=0.4)
    found = run_search(evaluator)
    first, second = found.front[:2]
    want = [(name, 0.1 * 2**i, False) for name in (first, second) for i in range(3)]
    assert evaluator.calls == [*want, (first, 0.4, True)]
    assert found.chosen == 6
    assert [row.iteration for row in found.trace] == [1, 2, 3, 1, 2, 3, 4]
    assert found.why.endswith(
        "On confirmation (a second look): recognised in 0% of outputs; it keeps 100.0% on average "
        "(100.0% of others of the kind, 100.0% of everything else)."
    )


def test_a_layer_that_lost_much_is_bisected_to_the_end() -> None:
    evaluator = Thresholds(forgets=0.2, lost=0.2)
    run_search(evaluator, candidates=1)
    assert [step for _, step, confirm in evaluator.calls if not confirm] == pytest.approx(
        [0.1, 0.2, 0.15, 0.175]
    )


def test_a_choice_that_does_not_hold_is_replaced_by_the_next() -> None:
    """Steps 0.1, 0.05, 0.075, 0.0625, of which 0.1 and 0.075 forget; at 0.1 the closeness is lower, so it comes first."""
    evaluator = Thresholds(forgets=0.07, confirms=0.3, lost=0.2)
    found = run_search(evaluator, candidates=1, confirmations=2)
    assert evaluator.calls[4:] == [(found.front[0], 0.1, True), (found.front[0], pytest.approx(0.075), True)]
    assert found.chosen is None
    assert found.why == "None of the 2 steps confirmed (a second look) was feasible again."
    found = run_search(Thresholds(forgets=0.07, confirms=0.3, lost=0.2), candidates=1, confirmations=1)
    assert len(found.trace) == 4 + 1
    found = run_search(Thresholds(forgets=0.07, confirms=0.3, lost=0.2), candidates=1, confirmations=3)
    assert (
        found.why == "None of the 2 steps confirmed (a second look) was feasible again."
    )  # there is no third


@pytest.mark.parametrize("rule", ["paper", "deepest"])
def test_other_rules_keep_a_choice_that_does_not_hold(rule) -> None:
    found = run_search(Thresholds(forgets=0.4, confirms=9.0), rule=rule)
    assert found.chosen == len(found.trace) - 1
    assert not found.trace[-1].feasible
    assert "(a second look): recognised in 100% of outputs" in found.why


def test_confirmations_end_when_no_step_is_left() -> None:
    found = run_search(Thresholds(forgets=0.1, confirms=0.3), candidates=1, max_evals=1)
    assert (found.chosen, [row.step for row in found.trace]) == (None, [0.1, 0.1])
    assert found.why == "The one step confirmed (a second look) was not feasible again."


def test_a_first_choice_that_does_not_hold_may_be_made_longer() -> None:
    """Step 0.1 forgets, but confirmed only steps from 0.2 on do: 0.1, 0.15 and 0.225 are confirmed."""
    evaluator = Thresholds(forgets=0.1, confirms=0.2)
    found = run_search(evaluator, candidates=1, max_evals=1, lengthen=1.5)
    assert [step for _, step, confirm in evaluator.calls if confirm] == pytest.approx([0.1, 0.15, 0.225])
    assert found.chosen == 3
    assert found.why.startswith(
        f"Not feasible on confirmation: {found.front[0]} by 10.0%, {found.front[0]} by 15.0%. Next: The first choice "
        "was made longer, as no step tried was feasible again. On confirmation (a second look): recognised in 0%"
    )
    found = run_search(Thresholds(forgets=0.1, confirms=0.3), candidates=1, max_evals=1, lengthen=1.5)
    assert (found.chosen, found.why) == (
        None, "None of the 3 steps confirmed (a second look) was feasible again."
    )  # fmt: skip


def test_an_empty_front_is_said() -> None:
    clip = pipeline().clip
    flat = {name: torch.zeros_like(weight) for name, weight in clip.weights.items()}
    gradients = {"text_encoder": Gradients(flat, flat, 1, 1, {})}
    found = by_outputs(SEARCH, Thresholds(0.1), pipeline(), gradients, tiny.task(), "Ada Fox", run=Run())
    assert (found.front, found.trace, found.chosen) == ((), (), None)
    assert found.why == "Nothing was tried: no layer is on the front, or has a gain."


def test_without_a_feasible_step_nothing_is_confirmed() -> None:
    evaluator = Thresholds(forgets=9.0)
    found = run_search(evaluator)
    assert found.chosen is None
    assert found.why == (
        "No feasible step: want a forget top-1 accuracy of at most 50.0%; the lowest was 100.0%; 0 of 8 steps on "
        "2 layers were feasible. The upper end of the accuracy's 95 % interval decides what is feasible."
    )
    assert not any(confirm for _, _, confirm in evaluator.calls)


def test_null_candidates_are_all_layers_on_the_front() -> None:
    found = run_search(Thresholds(forgets=0.1), candidates=None)
    assert {row.candidate.name for row in found.trace} == set(found.front)


def test_the_log_has_the_scores_and_every_evaluation() -> None:
    log: list = []
    found = run_search(Thresholds(forgets=0.1), log)
    assert log[0] == ("scores", {"concept": "Ada Fox", "scores": found.scores, "front": found.front})
    assert log[1:] == [("evaluation", {"concept": "Ada Fox", **row.record()}) for row in found.trace]

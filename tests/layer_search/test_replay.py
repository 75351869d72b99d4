from dataclasses import dataclass, replace

import tiny

from muwa.cache.store import Store
from muwa.layer_search.base import LayerSearch
from muwa.layer_search.replay import replay, run_search
from muwa.run import Run
from muwa.types.search import LAMBDA, NOTHING_EDITED, Candidate, Evaluation, LayerScore, Search

CALLS = []


def evaluation(step):
    rates = {
        "forget_top1": 0.5,
        "forget_top5": 1.0,
        "forget_cosine": 0.2,
        "retain_top1": 0.75,
        "utility_top1": 0.25,
    }
    return Evaluation(
        Candidate({"": "visual.proj"}, "vision"), 1, step, LAMBDA, step / 10, False, 1.0, 0.5, 0.1, 0.2, rates
    )


@dataclass(frozen=True)
class Steps(LayerSearch):
    """Tries given steps of no consequence, and logs what a search logs."""

    steps: tuple[float, ...]

    def __call__(self, model, gradients, task, concept, *, run):
        CALLS.append(concept)
        scores = {"visual.proj": LayerScore(1.0, 0.5, -0.5, 2.0, 3.0, 4.0, "vision")}
        run.log("scores", {"concept": concept, "scores": scores, "front": ("visual.proj",)})
        trace = tuple(evaluation(step) for step in self.steps)
        for row in trace:
            run.log("evaluation", {"concept": concept, **row.record()})
        before = replace(evaluation(0.0), candidate=NOTHING_EDITED)
        return Search(concept, "paper", "tensor", scores, ("visual.proj",), before, trace, None, "None.")


def run_and_log(search, store):
    log = []
    run = Run(store, lambda event, row: log.append((event, row)))
    found = run_search(search, tiny.clip(), {}, tiny.task(), "Ada Fox", run)
    return found, log


def test_a_search_from_the_cache_is_the_same_and_logs_the_same(tmp_path):
    CALLS.clear()
    first, log = run_and_log(Steps((1.0, 2.0)), Store(tmp_path))
    second, log_again = run_and_log(Steps((1.0, 2.0)), Store(tmp_path))
    assert CALLS == ["Ada Fox"]
    assert second == first
    assert [event for event, _ in log] == ["scores", "evaluation", "evaluation"]
    assert log_again == log
    assert log[1][1] == {"concept": "Ada Fox", **evaluation(1.0).record()}


def test_other_settings_are_another_search(tmp_path):
    CALLS.clear()
    for steps in ((1.0, 2.0), (1.0, 3.0)):
        found, _ = run_and_log(Steps(steps), Store(tmp_path))
        assert [row.step for row in found.trace] == list(steps)
    assert len(CALLS) == 2


def test_without_a_cache_a_search_runs_and_logs_once():
    CALLS.clear()
    _, log = run_and_log(Steps((1.0,)), None)
    assert CALLS == ["Ada Fox"]
    assert [event for event, _ in log] == ["scores", "evaluation"]


def test_a_replay_is_the_scores_and_then_every_evaluation():
    found, log = run_and_log(Steps((1.0, 2.0)), None)
    again = []
    replay(found, lambda event, row: again.append((event, row)))
    assert again == log

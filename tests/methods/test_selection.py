from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.layer_search.choice import kept_error
from muwa.methods._evaluator import WHOLE_MODEL, EditEvaluator
from muwa.methods._selection import (
    Checkpoints,
    Selection,
    best_of,
    cached_trace,
    deltas_of,
    evaluate_each,
    first_of,
    search_of,
    store_selectable,
)
from muwa.methods.base import make_edit
from muwa.models.vlm.question_answering import QuestionAnswering
from muwa.run import Run
from muwa.runtime.distributed import Distributed
from muwa.types.search import Evaluation

NAMES = ["ft", "ga", "gaft", "lip", "nullspace", "razor", "salun", "ssd", "task_arithmetic"]
# Retain and utility images: the standard error of rates of 0.7 and 0.5 is 0.5 * (0.0021 + 0.0025)^0.5 = 0.034.
COUNTS = (100, 100)
LARGEST_ERROR = kept_error(0.5, 0.5, COUNTS)


def row(top1, top5, retain, utility=0.5, *, cosine=0.0, counts=COUNTS):
    metrics = {"forget_top1": top1, "forget_top5": top5, "forget_cosine": cosine, "retain_top1": retain,
               "utility_top1": utility}  # fmt: skip
    return Evaluation(WHOLE_MODEL, 1, 1.0, "learning rate", 0.1, top5 <= 0, top5, (retain + utility) / 2,
                      kept_error(retain, utility, counts), cosine, metrics)  # fmt: skip


def test_the_best_is_a_feasible_one_that_keeps_most_and_the_first_the_first_without_a_hit():
    trace = [row(0.5, 1.0, 0.9), row(0.0, 0.5, 0.8), row(0.0, 0.0, 0.6), row(0.0, 0.0, 0.7)]
    assert (best_of(trace), first_of(trace)) == (3, 1)
    assert (best_of(trace[:2]), first_of(trace[:1])) == (None, 0)
    assert first_of([row(0.5, 1, 0), row(0.25, 1, 0), row(0.25, 1, 0)]) == 1


def test_within_a_standard_error_of_the_best_kept_rate_the_lowest_closeness_is_best():
    rows = [(0.62, 0.1), (0.64, 0.2), (0.7, 0.3)]
    # kept 0.56, 0.57, 0.60; the most less one standard error is 0.566
    assert best_of([row(0, 0, retain, cosine=cosine) for retain, cosine in rows]) == 1
    many = (10**9, 10**9)  # so many images that every difference is one
    assert best_of([row(0, 0, retain, cosine=cosine, counts=many) for retain, cosine in rows]) == 2
    assert best_of([row(0, 0, 0.7, cosine=0.2), row(0, 0, 0.7, cosine=0.2)]) == 0


def test_only_the_deltas_that_can_be_selected_are_kept():
    rows = [
        row(0.5, 1.0, 0.9),
        row(0.25, 1.0, 0.9),
        row(0.0, 0.5, 0.8),
        row(0.0, 0.0, 0.6, cosine=0.3),
        row(0.0, 0.0, 0.5, cosine=0.4),  # keeps less and forgets less thoroughly
        row(0.0, 0.0, 0.58, cosine=0.2),  # keeps 0.01 less but forgets more thoroughly
        row(0.0, 0.0, 0.9, cosine=0.3),  # keeps more than all before by more than a standard error
    ]
    stored, seen = {}, []
    for i in range(len(rows)):
        store_selectable(stored, rows[: i + 1], {"w": torch.tensor(float(i))}, LARGEST_ERROR)
        seen.append(sorted(stored))
    assert seen == [["0"], ["1"], ["2"], ["2", "3"], ["2", "3"], ["2", "3", "5"], ["2", "6"]]
    assert stored["6"]["w"] == 6


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_the_best_has_been_kept(seed):
    rng, counts = np.random.default_rng(seed), (7, 13)
    rates = rng.integers(0, [2, 8, 14], (30, 3)) / [1, 7, 13]
    rows = [
        row(0, top5, retain, utility, cosine=rng.normal(), counts=counts) for top5, retain, utility in rates
    ]
    stored = {}
    for i in range(len(rows)):
        store_selectable(stored, rows[: i + 1], {}, kept_error(0.5, 0.5, counts))
        best = best_of(rows[: i + 1])
        assert best is None or str(best) in stored


def test_a_search_says_in_words_what_was_selected():
    task, before = tiny.task(), row(1, 1, 0.9)
    trace = [row(0.5, 1.0, 0.9), row(0.0, 0.0, 0.2, 0.0), row(0.0, 0.0, 1.0, 1.0)]
    found = {
        "before": before,
        "trace": trace,
        "deltas": {"1": {"b": torch.ones(2)}, "2": {"b": torch.zeros(2)}},
    }
    best = search_of(task, Selection("best", "top5", 0.0), found, "epochs")
    assert (best.chosen, best.why) == (
        2,
        "Among the feasible epochs whose kept rate is within 1 standard error of the best (100.0%), this one forgets "
        "most thoroughly (its samples are least close to their name); it keeps 100.0% on average "
        "(100.0% of others of the kind, 100.0% of everything else); 2 of 3 epochs were feasible.",
    )
    assert (best.concept, best.rule, best.granularity, best.before) == (
        "Ada Fox",
        "best",
        "all weights",
        before,
    )
    assert (best.trace, best.scores, best.front) == (tuple(trace), {}, ())
    first = search_of(task, Selection("first", "top5", 0.0), found, "epochs")
    assert (first.chosen, first.why) == (
        1,
        "The first of the epochs with the lowest forget top-1 accuracy (0.0%); 2 of 3 epochs were feasible.",
    )
    assert deltas_of(first, found)["b"].tolist() == [1, 1]
    one = {**found, "trace": trace[:1]}
    lowest = search_of(task, Selection("first", "top5", 0.0), one, "epochs")
    assert (lowest.chosen, lowest.why) == (
        0,
        "The first of the epochs with the lowest forget top-1 accuracy (50.0%); 0 of 1 epochs were feasible.",
    )
    none = search_of(task, Selection("best", "top5", 0.0), one, "scales")
    assert (none.chosen, none.why) == (
        None,
        "No feasible scales: the lowest forget top-5 accuracy was 100.0%; 0 of 1 scales were feasible.",
    )
    assert deltas_of(none, found) == {}


def test_a_selection_out_of_range_is_named():
    for settings, message in (
        (("paper", "top5", 0.0), "method.rule: got 'paper', want one of best, first"),
        (("best", "top3", 0.0), "method.criterion: got 'top3', want one of top5, top1"),
        (("best", "top1", 1.0), r"method.target: got 1.0, want a forget accuracy in \[0, 1\)"),
        (("best", "top1", -0.1), r"method.target: got -0.1, want a forget accuracy in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Selection(*settings)


def deltas(size):
    """A change of the image projection, `size` times its weights."""
    return {"visual.proj": size * tiny.clip().weights["visual.proj"]}


def evaluator(run):
    return EditEvaluator(
        tiny.clip().observe(run), tiny.split(), criterion="top5", target=0.0, step_unit="size"
    )


def test_checkpoints_log_each_evaluation_and_count_them():
    events = []
    checkpoints = Checkpoints(evaluator(Run(log=lambda event, row: events.append((event, row)))))
    rows = [checkpoints.evaluate(deltas(size), size) for size in (0.1, 0.2)]
    rows.append(checkpoints.evaluate(deltas(0.3), 0.3, iteration=7))
    assert [row.iteration for row in rows] == [1, 2, 7]
    assert events == [("evaluation", row.record()) for row in rows]
    found = checkpoints.result(samples=4)
    assert (found["trace"], found["samples"], found["before"].iteration) == (rows, 4, 0)
    assert str(first_of(rows)) in found["deltas"]
    again = []
    resumed = Checkpoints(
        evaluator(Run(log=lambda event, row: again.append((event, row)))), list(rows), dict(found["deltas"])
    )
    assert again == events  # those of the stopped computation are logged again
    assert resumed.evaluate(deltas(0.4), 0.4).iteration == 4


def test_evaluating_each_edit_keeps_the_order_and_no_deltas():
    events = []
    run = Run(log=lambda event, row: events.append((event, row)))
    found = evaluate_each(evaluator(run), [(size, deltas(size)) for size in (0.3, 0.1)], 2, "scaling")
    assert [(row.iteration, row.step, row.step_unit) for row in found["trace"]] == [
        (1, 0.3, "size"),
        (2, 0.1, "size"),
    ]
    assert set(found) == {"before", "trace"}
    assert events == [("evaluation", row.record()) for row in found["trace"]]


def two_evaluations(sizes, *, run):
    """A cached function; the run that it gets has no worker ranks."""
    assert run.distributed.size == 1
    return evaluate_each(evaluator(run), [(size, deltas(size)) for size in sizes], len(sizes), "scaling")


def test_the_log_hears_each_evaluation_once_computed_or_read_back(tmp_path):
    task, heard = tiny.task(), []
    for _ in range(2):
        events = []
        store = Store(tmp_path)
        run = Run(
            store,
            log=lambda event, row, events=events: events.append((event, row)),
            distributed=Distributed(0, 2),
        )
        found = cached_trace(run, two_evaluations, (0.1, 0.2), task=task)
        heard.append((store.events["edit"], events))
        assert events == [("evaluation", {"concept": "Ada Fox", **row.record()}) for row in found["trace"]]
    assert [event for event, _ in heard] == ["miss", "hit"]
    assert heard[0][1] == heard[1][1]


@pytest.mark.parametrize("name", NAMES)
def test_what_no_method_can_use_is_refused_before_any_compute(tmp_path, name):
    store, model, task = Store(tmp_path), tiny.clip(), tiny.task()
    other = SimpleNamespace(observer=QuestionAnswering, source="tiny")
    with pytest.raises(ValueError, match=rf"method={name}: got .*\(tiny\), want a CLIP \(model=clip"):
        make_edit(part(f"method={name}"), other, task, Run(store))
    for settings, message in (
        ({"rule": "paper"}, "method.rule: got 'paper', want one of best, first"),
        ({"criterion": "top3"}, "method.criterion: got 'top3', want one of top5, top1"),
        ({"target": 1.0}, r"method.target: got 1.0, want a forget accuracy in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make_edit(part(f"method={name}", **settings), model, task, Run(store))
    if name != "salun":
        with pytest.raises(ValueError, match=f"gradients: method={name} takes no mean gradients"):
            make_edit(part(f"method={name}"), model, task, Run(store, gradient_file=tmp_path / "g"))
    if name not in ("salun", "ssd"):  # those take gradients together
        assert (
            make_edit(part(f"method={name}"), model, task, Run(store, distributed=Distributed(1, 2))).deltas
            == {}
        )
    assert store.events == {}


@pytest.mark.parametrize(("name", "settings", "message"), [
    ("ga", {"forget_loss": "l2"}, "loss: got 'l2', want one of cosine, contrastive"),
    ("ft", {"retain_loss": "l2"}, "loss: got 'l2'"), ("gaft", {"retain_loss": "l2"}, "loss: got 'l2'"),
    ("salun", {"forget_loss": "l2"}, "loss: got 'l2'"), ("ssd", {"retain_loss": "l2"}, "loss: got 'l2'"),
    ("task_arithmetic", {"forget_loss": "l2"}, "loss: got 'l2'"),
    ("ga", {"epochs": 0}, "method.epochs: got 0, want at least 1"),
    ("ga", {"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
    ("ssd", {"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
    ("task_arithmetic", {"epochs": 0}, "method.epochs: got 0, want at least 1"),
    ("ft", {"learning_rate": 0.0}, "method.learning_rate: got 0.0, want a number above 0"),
    ("gaft", {"weight_decay": -0.1}, "method.weight_decay: got -0.1, want at least 0"),
    ("ga", {"patience": -1}, "method.patience: got -1, want at least 0"),
    ("ga", {"evals_per_epoch": 0}, "method.evals_per_epoch: got 0, want at least 1"),
    ("salun", {"share": 0.0}, r"method.share: got 0.0, want a share of all weights in \(0, 1\]"),
    ("ssd", {"alpha": 0}, "method.alpha: got 0, want a number above 0"),
    ("ssd", {"strengths": []}, "method.strengths: got none"),
    ("ssd", {"strengths": [1, -1]}, r"method.strengths\[1\]: got -1, want a number above 0"),
    ("task_arithmetic", {"scales": [0]}, r"method.scales\[0\]: got 0, want a number above 0"),
    ("task_arithmetic", {"scales": []}, "method.scales: got none"),
    ("nullspace", {"strengths": [1.5]}, r"method.strengths: got \[1.5\], want some in \(0, 1\]"),
    ("nullspace", {"rank": 3}, r"method.rank: got 3, want 1 to 2 \(prompts\)"),
    ("nullspace", {"templates": ["a person"]}, "method.templates: got .*want texts with {} where the name stands"),
    ("lip", {"confidence": 1.0}, "method.confidence: got 1.0, want a number in"),
    ("lip", {"noise": []}, "method.noise: got none, want at least one"),
    ("lip", {"noise": [0.1] * 8}, "method.noise: got 8, want 1 to 7 standard deviations"),
    ("lip", {"copies": 0}, "method.copies: got 0, want at least 1"),
    ("razor", {"alpha": 2.0}, "method.alpha: got 2.0, want a number in"),
    ("razor", {"granularity": "block"}, "granularity: got 'block', want one of"),
    ("razor", {"rounds": 0}, "method.rounds: got 0, want at least 1"),
])  # fmt: skip
def test_a_setting_out_of_range_is_named_before_any_compute(tmp_path, name, settings, message):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_edit(part(f"method={name}", **settings), tiny.clip(), tiny.task(), Run(store))
    assert store.events == {}

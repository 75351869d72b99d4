from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.eval.measure import evaluate
from muwa.methods import ft, ga, gaft, lip, nullspace, razor, salun, ssd, task_arithmetic
from muwa.methods._selection import (
    EditEvaluator,
    best_of,
    difference,
    edit_of,
    first_of,
    forget_pairs,
    keep,
    retain_pairs,
    search_of,
)
from muwa.models.clip.embeddings import Features
from muwa.runtime.distributed import Distributed
from muwa.types.search import Evaluation

METHODS = [ft, ga, gaft, lip, nullspace, razor, salun, ssd, task_arithmetic]
NAMES = [method.__name__.rpartition(".")[2] for method in METHODS]


PICTURES = (
    100,
    100,
)  # of retain and utility: one standard error of rates of 0.7 and 0.5 is 0.5 * (0.0021 + 0.0025)^0.5 = 0.034


def row(top1, top5, retain, utility=0.5, *, cosine=0.0):
    return Evaluation("all weights", "both", 1, 1.0, 0.1, top1, top5, cosine, retain, utility, top5 <= 0.0)


def test_the_best_is_a_feasible_one_that_keeps_most_and_the_first_the_first_without_a_hit():
    trace = [row(0.5, 1.0, 0.9), row(0.0, 0.5, 0.8), row(0.0, 0.0, 0.6), row(0.0, 0.0, 0.7)]
    assert (best_of(trace, PICTURES), first_of(trace)) == (3, 1)
    assert (best_of(trace[:2], PICTURES), first_of(trace[:1])) == (None, 0)
    assert first_of([row(0.5, 1, 0), row(0.25, 1, 0), row(0.25, 1, 0)]) == 1


def test_of_those_that_keep_as_much_but_for_a_standard_error_the_deepest_is_best():
    trace = [row(0, 0, 0.62, cosine=0.1), row(0, 0, 0.64, cosine=0.2), row(0, 0, 0.7, cosine=0.3)]
    # kept 0.56, 0.57, 0.60; the most less one standard error is 0.566
    assert best_of(trace, PICTURES) == 1
    assert best_of(trace, (10**9, 10**9)) == 2  # so many pictures that every difference is one
    assert best_of([row(0, 0, 0.7, cosine=0.2), row(0, 0, 0.7, cosine=0.2)], PICTURES) == 0


def test_only_the_deltas_that_can_be_chosen_are_kept():
    rows = [
        row(0.5, 1.0, 0.9),
        row(0.25, 1.0, 0.9),
        row(0.0, 0.5, 0.8),
        row(0.0, 0.0, 0.6, cosine=0.3),
        row(0.0, 0.0, 0.5, cosine=0.4),  # keeps less and is less deep
        row(0.0, 0.0, 0.58, cosine=0.2),  # keeps 0.01 less but is deeper
        row(0.0, 0.0, 0.9, cosine=0.3),  # keeps more than all before by more than a standard error
    ]
    found, seen = {}, []
    for i in range(len(rows)):
        keep(found, rows[: i + 1], {"w": torch.tensor(float(i))}, PICTURES)
        seen.append(sorted(found))
    assert seen == [["0"], ["1"], ["2"], ["2", "3"], ["2", "3"], ["2", "3", "5"], ["2", "6"]]
    assert found["6"]["w"] == 6


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_the_best_has_been_kept(seed):
    rng, pictures = np.random.default_rng(seed), (7, 13)
    rates = rng.integers(0, [2, 8, 14], (30, 3)) / [1, 7, 13]
    rows = [row(0, top5, retain, utility, cosine=rng.normal()) for top5, retain, utility in rates]
    found = {}
    for i in range(len(rows)):
        keep(found, rows[: i + 1], {}, pictures)
        best = best_of(rows[: i + 1], pictures)
        assert best is None or str(best) in found


def test_a_search_says_in_words_what_was_chosen():
    task, before = tiny.task(), row(1, 1, 0.9)
    trace = [row(0.5, 1.0, 0.9), row(0.0, 0.0, 0.2, 0.0), row(0.0, 0.0, 1.0, 1.0)]
    best = search_of(task, "best", "top5", before, trace, "epochs")
    assert (best.chosen, best.why) == (
        2,
        "Of the feasible epochs that keep most, or at most 1 standard error less, the one that forgets deepest; it keeps "
        "100.0% of retain and utility; 2 of 3 epochs were feasible.",
    )
    first = search_of(task, "first", "top5", before, trace, "epochs")
    assert (first.chosen, first.why) == (
        1,
        "The first of the epochs with forget top1 0 (0.0%); 2 of 3 epochs were feasible.",
    )
    none = search_of(task, "best", "top5", before, trace[:1], "scales")
    assert (none.chosen, none.why) == (None, "No feasible one: the lowest forget top5 reached was 100.0%; 0 of 1 scales were feasible.")  # fmt: skip
    assert edit_of(task, none, {}, 7).samples == 7
    assert edit_of(task, none, {}, 7).moves == ()
    edit = edit_of(replace(task, names=("Ada Fox", "Bo Hill")), best, {"a": torch.zeros(2), "b": torch.ones(2)}, 7)
    assert [move.concept for move in edit.moves] == ["Ada Fox", "Bo Hill"]
    assert list(edit.deltas) == ["b"]


@pytest.mark.parametrize(
    "names", [["visual.proj"], ["text_projection"], ["visual.proj", "text_projection"], ["logit_scale"]]
)
def test_a_jury_gives_what_evaluating_the_edited_model_gives(tmp_path, names):
    model, probe = tiny.clip(), tiny.split()
    generator = torch.Generator().manual_seed(0)
    deltas = {name: 0.3 * torch.randn(model.weights[name].shape, generator=generator) for name in names}
    edit_evaluator = EditEvaluator(model, probe, Features(model, Store(tmp_path)), target=0.5, criterion="top1")
    got, before = edit_evaluator(deltas, 3, 0.1), edit_evaluator.before()
    edited = model.with_weights({name: model.weights[name] + delta for name, delta in deltas.items()})
    for found, one in ((got, edited), (before, model)):
        want = evaluate(one, tiny.judged(probe), store=Store(tmp_path / "other"))
        assert found.forget_top5 == pytest.approx(want["forget/top5"].value)
        assert found.forget_cosine == pytest.approx(want["forget/cosine"].value, abs=1e-6)
        assert found.retain_top1 == pytest.approx(want["retain/top1"].value)
        assert found.utility_top1 == pytest.approx(want["utility/top1"].value)
        assert found.feasible == (found.forget_top1 <= 0.5)
    size = sum(w.double().square().sum() for w in model.weights.values()) ** 0.5
    assert got.relative_norm == pytest.approx((sum(d.square().sum() for d in deltas.values()) ** 0.5 / size).item())
    assert (got.iteration, got.step, got.layer, before.relative_norm) == (3, 0.1, "all weights", 0)


def test_pairs_are_joined_and_those_that_mention_the_forgotten_left_out():
    task = tiny.task()
    two = replace(task, names=tiny.NAMES[:2], forget={name: tiny.pairs(3, names=(name,)) for name in tiny.NAMES[:2]})
    assert forget_pairs(two).captions == ("a photo of Ada Fox",) * 3 + ("a photo of Bo Hill",) * 3
    assert retain_pairs(task).keys == tuple(f"k{i}" for i in range(12) if i not in (0, 8))
    with pytest.raises(ValueError, match="no pairs of Ada Fox to forget"):
        forget_pairs(replace(task, forget={"Ada Fox": tiny.pairs(0)}))
    with pytest.raises(ValueError, match="no retain pairs"):
        retain_pairs(replace(task, mentions=tuple(range(12))))


def test_a_difference_names_only_what_changed():
    start = {"a": torch.ones(2), "b": torch.ones(2)}
    got = difference({"a": torch.ones(2), "b": torch.tensor([1.0, 3.0])}, start)
    assert {name: delta.tolist() for name, delta in got.items()} == {"b": [0.0, 2.0]}


@pytest.mark.parametrize(("method", "name"), list(zip(METHODS, NAMES, strict=True)), ids=NAMES)
def test_what_no_method_can_use_is_refused_before_any_compute(tmp_path, method, name):
    store, model, task = Store(tmp_path), tiny.clip(), tiny.task()
    with pytest.raises(ValueError, match=rf"method={name}: got a object, want a CLIP \(model=clip"):
        method.unlearn(object(), task, store=store)
    for settings, message in (
        ({"rule": "paper"}, "method.rule: got 'paper', want one of best, first"),
        ({"criterion": "top3"}, "method.criterion: got 'top3', want one of top5, top1"),
        ({"target": 1.0}, r"method.target: got 1.0, want a forget accuracy in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            method.unlearn(model, task, store=store, **settings)
    if name != "salun":
        with pytest.raises(ValueError, match=f"gradients: method={name} takes no mean gradients"):
            method.unlearn(model, task, store=store, gradient_file=tmp_path / "g")
    if name not in ("salun", "ssd"):  # those take gradients with the others
        assert method.unlearn(model, task, store=store, world=Distributed(1, 2)).deltas == {}
    assert store.events == {}


@pytest.mark.parametrize(("method", "settings", "message"), [
    (ga, {"forget_loss": "l2"}, "loss: got 'l2', want one of cosine, contrastive"),
    (ft, {"retain_loss": "l2"}, "loss: got 'l2'"), (gaft, {"retain_loss": "l2"}, "loss: got 'l2'"),
    (ga, {"epochs": 0}, "method.epochs: got 0, want at least 1"),
    (ga, {"batch_size": 0}, "method.batch_size: got 0, want at least 1"),
    (ft, {"learning_rate": 0.0}, "method.learning_rate: got 0.0, want a number above 0"),
    (gaft, {"weight_decay": -0.1}, "method.weight_decay: got -0.1, want at least 0"),
    (ga, {"patience": -1}, "method.patience: got -1, want at least 0"),
    (ga, {"evals_per_epoch": 0}, "method.evals_per_epoch: got 0, want at least 1"),
    (salun, {"share": 0.0}, r"method.share: got 0.0, want a share of all weights in \(0, 1\]"),
    (ssd, {"alpha": 0}, "method.alpha: got 0, want a number above 0"),
    (ssd, {"strengths": []}, "method.strengths: got none"),
    (ssd, {"strengths": [1, -1]}, r"method.strengths\[1\]: got -1, want a number above 0"),
    (task_arithmetic, {"scales": [0]}, r"method.scales\[0\]: got 0, want a number above 0"),
    (task_arithmetic, {"scales": []}, "method.scales: got none"),
    (nullspace, {"strengths": [1.5]}, r"method.strengths: got \[1.5\], want some in \(0, 1\]"),
    (nullspace, {"rank": 3}, r"method.rank: got 3, want 1 to 2 \(prompts\)"),
    (nullspace, {"templates": ["a person"]}, "method.templates: got .*want texts with {} where the name stands"),
    (lip, {"confidence": 1.0}, "method.confidence: got 1.0, want a share"),
    (lip, {"noise": []}, "method.noise: got 0, want 1 to 7 standard deviations"),
    (lip, {"copies": 0}, "method.copies: got 0, want at least 1"),
    (razor, {"alpha": 2.0}, "method.alpha: got 2.0, want a number in"),
    (razor, {"granularity": "block"}, "granularity: got 'block', want one of"),
    (razor, {"rounds": 0}, "method.rounds: got 0, want at least 1"),
])  # fmt: skip
def test_a_setting_out_of_range_is_named_before_any_compute(tmp_path, method, settings, message):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match=message):
        method.unlearn(tiny.clip(), tiny.task(), store=store, **settings)
    assert store.events == {}

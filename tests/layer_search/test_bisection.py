import pytest
import tiny
import torch
from layer_search.examples import random_gradients, whitened_gradients
from records import part

from muwa.layer_search.bisection import bisection, deepest, next_step
from muwa.run import Run
from muwa.types.gradients import Gradients
from muwa.types.search import LAMBDA, Layer


def replay(first: float, threshold: float, n: int = 10) -> list[float]:
    """The steps that are tried when every step at or above `threshold` forgets."""
    steps, tried = bisection(first, n), []
    step = next(steps)
    while step is not None:
        tried.append(step)
        step = next_step(steps, step >= threshold)
    return tried


def test_the_releases_rule_line_by_line():
    # ratio = 10: r = 1; lo = 0, hi = inf; double while it fails; then midpoints
    assert replay(1.0, 3.0, 6) == [1, 2, 4, 3, 2.5, 2.75]


def test_a_first_step_that_forgets_is_halved():
    assert replay(1.0, 0.3, 4) == [1, 0.5, 0.25, 0.375]


def test_the_published_llava_trace():
    # SLUG release, LLaVA-1.5, layer 22.v_proj -> qkv, ratio 0.804, ten evaluations: .080 fails, .161 forgets, .121
    # forgets, .1006 fails, .1106 forgets, ... the last is .1078. Any threshold in (.1074, .1077) gives that trace.
    tried = replay(0.0804, 0.10755)
    assert tried[:5] == pytest.approx([0.0804, 0.1608, 0.1206, 0.1005, 0.11055], abs=1e-4)
    assert len(tried) == 10
    assert tried[-1] == pytest.approx(0.1078, abs=2e-4)


def test_never_more_than_max_evals_and_no_early_stop():
    assert len(replay(1.0, 1e9, 7)) == 7
    assert len(replay(1.0, 0.0, 7)) == 7


def test_deepest_prefers_depth_then_vision_then_the_later():
    a, b, c, d = (Layer(n, t, x, (), ()) for n, t, x in
                  (("a", "vision", 0.5), ("b", "text", 0.9), ("c", "vision", 0.9), ("d", "vision", 0.9)))  # fmt: skip
    assert deepest([a, b, c, d]) is d
    assert deepest([a, b]) is b


@pytest.fixture(scope="module")
def found():
    """A search by each rule on a random model with random gradients."""
    model = tiny.clip()
    g = torch.Generator().manual_seed(3)
    f, r = ({n: torch.randn(w.shape, generator=g) for n, w in model.weights.items()} for _ in range(2))
    gradients = {"": Gradients(f, r, 1, 1, {})}
    before = {n: w.clone() for n, w in model.weights.items()}
    log: list[tuple[str, dict[str, object]]] = []
    run = Run(log=lambda event, fields: log.append((event, fields)))
    searches = {}
    for rule in ("constrained", "paper", "deepest"):
        search = part("layer_search=pareto_bisect", rule=rule, max_evals=3)
        searches[rule] = search(model, gradients, tiny.task(), tiny.NAMES[0], run=run)
    return model, before, searches, log


def test_the_trace_is_whole_and_the_model_untouched(found):
    model, before, searches, log = found
    search = searches["paper"]
    assert len(search.trace) == 3 * len(search.front)
    assert [row.candidate.name for row in search.trace[::3]] == list(search.front)
    assert [row.iteration for row in search.trace] == [1, 2, 3] * len(search.front)
    assert all(torch.equal(before[n], w) for n, w in model.weights.items())
    events = [event for event, _ in log]
    assert events.count("scores") == 3
    assert events.count("evaluation") == sum(len(s.trace) for s in searches.values())


def test_the_log_has_the_records_of_the_trace(found):
    _, _, searches, log = found
    rows = [fields for event, fields in log if event == "evaluation"]
    search = searches["constrained"]
    assert rows[: len(search.trace)] == [{"concept": tiny.NAMES[0], **row.record()} for row in search.trace]
    assert log[0] == ("scores", {"concept": tiny.NAMES[0], "scores": search.scores, "front": search.front})


def test_relative_norm_is_the_step_in_units_of_the_layers_ratio(found):
    search = found[2]["paper"]
    for row in search.trace:
        score = search.scores[row.candidate.name]
        assert row.step_unit == LAMBDA
        assert row.relative_norm == pytest.approx(row.step * score.forget_norm / score.weight_norm, rel=1e-4)
    assert search.trace[0].relative_norm == pytest.approx(0.1, rel=1e-4)


def test_deepest_tries_one_layer_and_takes_the_last_step(found):
    search = found[2]["deepest"]
    assert len({row.candidate.name for row in search.trace}) == 1
    assert search.chosen == len(search.trace) - 1


@pytest.mark.parametrize("rule", ["constrained", "deepest"])
def test_an_empty_front_has_no_step(rule):
    gradients = random_gradients(tiny.clip())
    flat = {name: torch.zeros_like(g) for name, g in gradients.forget.items()}
    search = part("layer_search=pareto_bisect", rule=rule)
    found = search(tiny.clip(), {"": Gradients(flat, flat, 1, 1, {})}, tiny.task(), "x", run=Run())
    assert (found.front, found.trace, found.chosen) == ((), (), None)
    assert found.why == "Nothing was tried: no layer is on the front, or has a gain."


def searched(gradients, **settings):
    search = part("layer_search=pareto_bisect", max_evals=2, stranger=50.0, **settings)
    return search(tiny.clip(), {"": gradients}, tiny.task(), tiny.NAMES[0], run=Run())


def layers_tried(search):
    return list(dict.fromkeys(row.candidate.name for row in search.trace))


@pytest.mark.parametrize("towers", [["vision", "text"], ["text"]])
@pytest.mark.parametrize("candidates", [1, 3, None])
def test_whitened_gradients_are_searched_on_the_layers_of_largest_gain(towers, candidates):
    """Those of all towers together, and each tower from its input to its output."""
    search = searched(whitened_gradients(tiny.clip()), candidates=candidates, towers=towers)
    gains = {n: s.gain for n, s in search.scores.items() if s.gain and s.tower in towers}
    assert len(gains) == 19 if len(towers) == 2 else 9
    best = sorted(gains, key=lambda name: -gains[name])[:candidates]
    depth = {
        layer.name: (towers.index(layer.tower), layer.depth)
        for layer in tiny.clip().layers("tensor")
        if layer.name in best
    }
    tried = layers_tried(search)
    assert set(tried) == set(best)
    assert [depth[name] for name in tried] == sorted(depth.values())
    assert search.rule == "margin"
    assert all(row.kept_margin is not None for row in search.trace)


def test_the_step_of_a_whitened_search_with_the_least_change_is_chosen():
    search = searched(whitened_gradients(tiny.clip()))
    feasible = [row for row in search.trace if row.feasible]
    assert len(feasible) >= 2
    assert search.trace[search.chosen].kept_margin == max(row.kept_margin for row in feasible)


def test_without_whitened_gradients_candidates_and_strangers_do_not_count():
    """The search is that of the rule "constrained" on the whole front, as before there were gains."""
    plain = random_gradients(tiny.clip())
    want = searched(plain, rule="constrained", candidates=None)
    for settings in ({}, {"candidates": 1}, {"rule": "constrained"}):
        assert searched(plain, **settings) == want
    assert sorted(layers_tried(want)) == sorted(want.front)
    assert len(want.front) > 3
    assert want.before.forget_bounds == {}


def test_by_another_rule_whitened_gradients_are_searched_on_the_front():
    search = searched(whitened_gradients(tiny.clip()), rule="constrained", candidates=1)
    assert sorted(layers_tried(search)) == sorted(search.front)
    assert search.rule == "constrained"


@pytest.mark.parametrize(("key", "value", "message"), [
    ("first_step", -0.1, "layer_search.first_step: got -0.1, want more than 0"),
    ("candidates", 0, "layer_search.candidates: got 0, want at least 1"),
    ("max_evals", 0, "layer_search.max_evals: got 0, want more than 0"),
])  # fmt: skip
def test_wrong_settings_name_their_key(key, value, message):
    with pytest.raises(ValueError, match=message):
        part("layer_search=pareto_bisect", **{key: value}).check(tiny.clip(), tiny.task())

import pytest
import tiny
import torch

from muwa.layer_search.steps import add_edits, choose, edit_of, kept, standard_error, step_deltas
from muwa.types.edit import Edit, Move
from muwa.types.gradients import Gradients
from muwa.types.search import Evaluation, Layer, Part, Search


def row(layer: str, forget: float, retain: float, cosine: float = 0.5, utility: float = 1.0) -> Evaluation:
    return Evaluation(layer, "vision", 1, 1.0, 0.1, forget, forget, cosine, retain, utility, forget <= 0)


def test_constrained_takes_the_feasible_step_that_keeps_most():
    trace = [row("a", 0.5, 1.0), row("a", 0.0, 0.6), row("b", 0.0, 0.8), row("b", 0.0, 0.7)]
    chosen, why = choose(trace, rule="constrained", criterion="top5")
    assert chosen == 2
    assert "3 of 4 steps on 2 layers were feasible" in why
    assert kept(trace[2]) == pytest.approx(0.9)


def test_constrained_breaks_ties_by_the_deeper_forgetting():
    assert choose([row("a", 0, 0.8, 0.5), row("b", 0, 0.8, 0.1)], rule="constrained", criterion="top5")[0] == 1


def test_within_one_standard_error_the_deepest_forgetting_wins():
    """100 retain and 100 utility pictures, 0.9 of each kept: the mean's standard error is sqrt(2 x 0.0009) / 2 = 0.0212."""
    trace = [
        row("a", 0, 0.9, 0.5, utility=0.9),
        row("b", 0, 0.86, 0.2, utility=0.9),
        row("c", 0, 0.8, 0.1, utility=0.9),
    ]
    assert standard_error(trace[0], (100, 100)) == pytest.approx(0.0212132)
    for tolerance, want in ((0.0, 0), (0.9, 0), (1.0, 1), (2.5, 2)):
        got, why = choose(trace, rule="constrained", criterion="top5", tolerance=tolerance, counts=(100, 100))
        assert got == want
    assert "keep most (90.0% of retain and utility, or at most 2.5 standard errors less)" in why
    assert "it keeps 85.0%; 3 of 3 steps on 3 layers were feasible" in why


def test_constrained_says_when_nothing_is_feasible():
    chosen, why = choose([row("a", 0.5, 1.0), row("b", 0.25, 1.0)], rule="constrained", criterion="top5")
    assert chosen is None
    assert "No feasible step: the lowest forget top5 reached was 25.0%" in why


def test_paper_takes_the_lowest_forget_accuracy_even_when_infeasible():
    chosen, why = choose([row("a", 0.5, 1.0), row("b", 0.25, 0.2), row("c", 0.25, 0.4)], rule="paper", criterion="top5")
    assert chosen == 2
    assert "NOT feasible" in why


def test_deepest_takes_the_last_step_even_when_infeasible():
    chosen, why = choose([row("a", 0.0, 1.0), row("a", 0.5, 1.0)], rule="deepest", criterion="top5")
    assert chosen == 1
    assert "NOT feasible" in why


def test_an_empty_front_is_said():
    assert choose([], rule="constrained", criterion="top5") == (None, "Nothing was tried: no layer is on the front.")


def test_step_deltas_touch_the_edited_parts_only():
    model = tiny.clip()
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    gradients = Gradients({n: torch.ones_like(w) for n, w in model.weights.items()}, {}, 1, 1, {})
    layer = Layer("q", "vision", 0.3, (Part(name, 0, 0, 32),), (Part(name, 0, 0, 32),))
    deltas = step_deltas(model, gradients, layer, 0.5)
    assert list(deltas) == [name]
    assert deltas[name][:32].unique().tolist() == [0.5]
    assert deltas[name][32:].unique().tolist() == [0.0]


def test_edits_add_and_shared_tensors_sum():
    one = Edit({"a": torch.ones(2), "b": torch.ones(1)}, (Move("x", "vision", "a", 1, 1),))
    two = Edit({"b": torch.ones(1)}, (Move("y", "text", "b", 1, 1),))
    both = add_edits([one, two])
    assert {n: d.tolist() for n, d in both.deltas.items()} == {"a": [1, 1], "b": [2]}
    assert [move.concept for move in both.moves] == ["x", "y"]
    assert one.deltas["b"].tolist() == [1]


def test_no_choice_is_an_edit_that_changes_nothing():
    search = Search("x", "constrained", "tensor", {}, (), row("", 1, 1), (), None, "")
    edit = edit_of(search, tiny.clip(), Gradients({}, {}, 1, 1, {}))
    assert (edit.deltas, edit.moves, edit.searches) == ({}, (), (search,))

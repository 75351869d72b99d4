from dataclasses import replace

import pytest
from layer_search.examples import row

from muwa.layer_search.choice import Acceptance, choose, kept_error, kept_rate

CONSTRAINED = Acceptance("constrained", "top5", 0.0, 0.0, 0.0)
PAPER = Acceptance("paper", "top5", 0.0, 0.0, 0.0)
DEEPEST = Acceptance("deepest", "top5", 0.0, 0.0, 0.0)
MARGIN = Acceptance("margin", "top5", 0.0, 0.0, 0.5)


def test_constrained_takes_the_feasible_step_that_keeps_most():
    trace = [row("a", 0.5, 1.0), row("a", 0.0, 0.6), row("b", 0.0, 0.8), row("b", 0.0, 0.7)]
    chosen, why = choose(trace, CONSTRAINED)
    assert chosen == 2
    assert why == (
        "Among the feasible steps whose kept rate is the best (90.0%), this one forgets most thoroughly (its samples "
        "are least close to their name); it keeps 90.0% on average (80.0% of others of the kind, 100.0% of everything else); "
        "3 of 4 steps on 2 layers were feasible."
    )


def test_constrained_breaks_ties_by_the_more_thorough_forgetting():
    assert choose([row("a", 0, 0.8, 0.5), row("b", 0, 0.8, 0.1)], CONSTRAINED)[0] == 1


def test_within_one_standard_error_the_most_thorough_forgetting_wins():
    """100 retain and 100 utility images, 0.9 of each kept: the error is sqrt(2 x 0.0009) / 2 = 0.0212."""
    trace = [row(name, 0, retain, closeness, utility=0.9, n=100)
             for name, retain, closeness in (("a", 0.9, 0.5), ("b", 0.86, 0.2), ("c", 0.8, 0.1))]  # fmt: skip
    assert trace[0].kept_error == pytest.approx(0.0212132)
    for tolerance, want, words in (
        (0.0, 0, "the best (90.0%)"),
        (0.9, 0, "within 0.9 standard errors of the best (90.0%)"),
        (1.0, 1, "within 1 standard error of the best (90.0%)"),
        (2.5, 2, "within 2.5 standard errors of the best (90.0%)"),
    ):
        chosen, why = choose(trace, replace(CONSTRAINED, tolerance=tolerance))
        assert chosen == want
        assert f"whose kept rate is {words}, this one" in why
    assert (
        "it keeps 85.0% on average (80.0% of others of the kind, 90.0% of everything else); 3 of 3 steps"
        in why
    )


def test_constrained_says_when_nothing_is_feasible():
    chosen, why = choose([row("a", 0.5, 1.0), row("b", 0.25, 1.0)], CONSTRAINED)
    assert chosen is None
    assert why == (
        "No feasible step: want a forget top-5 accuracy of at most 0.0%; the lowest was 25.0%; 0 of 2 steps on "
        "2 layers were feasible."
    )


def test_paper_takes_the_lowest_forget_accuracy_even_when_infeasible():
    chosen, why = choose([row("a", 0.5, 1.0), row("b", 0.25, 0.2), row("c", 0.25, 0.4)], PAPER)
    assert chosen == 2
    assert why == (
        "Lowest forget top-5 accuracy (25.0%), ties broken by the kept rate; this step is not feasible; "
        "0 of 3 steps on 3 layers were feasible."
    )
    assert (
        "this step is feasible; 1 of 1 steps on 1 layer was feasible" in choose([row("a", 0, 1.0)], PAPER)[1]
    )


def test_the_reason_names_the_criterion():
    assert (
        "Lowest forget top-1 accuracy (25.0%)"
        in choose([row("a", 0.25, 1.0)], replace(PAPER, criterion="top1"))[1]
    )


def margins(layer, forgotten, kept_margin, retain=1.0):
    """A row with measured margins; feasible if nothing is recognised."""
    return replace(row(layer, forgotten, retain), kept_margin=kept_margin)


def test_margin_takes_the_feasible_step_that_lowers_kept_margins_least():
    """Neither the step that keeps most, nor the one of least change that does not forget."""
    trace = [
        margins("a", 0.5, -0.001),
        margins("a", 0.0, -0.03, 1.0),
        margins("b", 0.0, -0.0123, 0.8),
        margins("b", 0.0, -0.02),
    ]
    chosen, why = choose(trace, MARGIN)
    assert chosen == 2
    assert why == (
        "Of the feasible steps, this one lowers the margins of what is retained least (by 0.0123 on average); "
        "it keeps 90.0% on average (80.0% of others of the kind, 100.0% of everything else); "
        "3 of 4 steps on 2 layers were feasible."
    )


def test_a_step_whose_margins_were_not_measured_comes_last():
    assert choose([row("a", 0.0, 1.0), margins("b", 0.0, -5.0)], MARGIN)[0] == 1


def test_margin_says_when_nothing_is_feasible_and_whether_it_was_for_want_of_clearness():
    chosen, why = choose([margins("a", 0.25, -0.1), margins("b", 0.5, -0.1)], MARGIN)
    assert chosen is None
    assert why == (
        "No feasible step: want a forget top-5 accuracy of at most 0.0%; the lowest was 25.0%; 0 of 2 steps on "
        "2 layers were feasible."
    )
    unclear = [replace(margins("a", 0.0, -0.1), feasible=False), margins("b", 0.5, -0.1)]
    chosen, why = choose(unclear, MARGIN)
    assert chosen is None
    assert why == (
        "No feasible step: want a forget top-5 accuracy of at most 0.0%, and images no nearer to their name than a "
        "stranger's; the lowest was 0.0%; 0 of 2 steps on 2 layers were feasible."
    )


def test_deepest_takes_the_last_step_even_when_infeasible():
    chosen, why = choose([row("a", 0.0, 1.0), row("a", 0.5, 1.0)], DEEPEST)
    assert chosen == 1
    assert why == (
        "The last step on the deepest front layer, a; this step is not feasible; 1 of 2 steps on 1 layer was feasible."
    )


@pytest.mark.parametrize("acceptance", [CONSTRAINED, MARGIN, PAPER, DEEPEST])
def test_an_empty_front_is_said(acceptance):
    assert choose([], acceptance) == (None, "Nothing was tried: no layer is on the front, or has a gain.")


def test_what_is_kept_and_its_error_by_hand():
    assert kept_rate(0.5, 1.0) == 0.75
    # variances 0.25 / 4 and 0; half the root of their sum
    assert kept_error(0.5, 1.0, (4, 10)) == pytest.approx(0.125)
    assert kept_error(0.5, 0.5, (0, 0)) == pytest.approx(
        0.5 * 0.5**0.5
    )  # a set without images counts as one image


@pytest.mark.parametrize(("settings", "message"), [
    ({"rule": "best"}, "layer_search.rule: got 'best', want one of constrained, margin, paper, deepest"),
    ({"criterion": "top3"}, "layer_search.criterion: got 'top3', want one of top1, top5"),
    ({"target": 1.0}, r"layer_search.target: got 1.0, want a forget accuracy in \[0, 1\)"),
    ({"target": -0.1}, "layer_search.target: got -0.1"),
    ({"tolerance": -1}, "layer_search.tolerance: got -1, want 0 or more standard errors"),
    ({"stranger": float("inf")}, "layer_search.stranger: got inf, want a number of deviations"),
    ({"stranger": float("nan")}, "layer_search.stranger: got nan"),
])  # fmt: skip
def test_a_setting_out_of_range_is_named(settings, message):
    CONSTRAINED.check()
    with pytest.raises(ValueError, match=message):
        replace(CONSTRAINED, **settings).check()

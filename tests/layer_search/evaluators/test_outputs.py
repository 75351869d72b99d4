import pytest

from muwa.eval.statistics import wilson
from muwa.layer_search.evaluators.outputs import Hits, evaluation
from muwa.types.search import RELATIVE, Candidate

ROLES = ["forget", "forget", "retain", "retain", "retain", "utility"]
BEFORE = Hits([True, True, True, True, False, True], ROLES)
AFTER = Hits([False, True, True, False, True, False], ROLES)


def test_rates_are_those_of_each_set() -> None:
    assert [AFTER.rate(role) for role in ("forget", "retain", "utility")] == [1 / 2, 2 / 3, 0]
    assert AFTER.of("retain") == [True, False, True]
    assert Hits([], []).rate("forget") == 0


def test_lost_counts_other_outputs_that_were_right_before() -> None:
    """Right before: two of retain and the utility one. Of these three, two are wrong now."""
    assert AFTER.lost(BEFORE) == wilson(2, 3)[1]
    assert BEFORE.lost(BEFORE) == wilson(0, 3)[1]


def test_the_evaluation_by_hand() -> None:
    candidate = Candidate({"text_encoder": "a"}, "text")
    upper = wilson(1, 2)[1]
    row = evaluation(AFTER, candidate, 0.4, 0.3, forget_at_most=upper, forget_top5=0.75, closeness=0.2)
    assert (row.candidate, row.iteration, row.step, row.step_unit, row.relative_norm) == (
        candidate,
        0,
        0.4,
        RELATIVE,
        0.3,
    )
    assert (row.feasible, row.forgotten, row.closeness) == (True, 0.5, 0.2)
    assert row.kept == pytest.approx((2 / 3 + 0) / 2)
    assert row.kept_error == pytest.approx(
        0.5 * (2 / 9 / 3) ** 0.5
    )  # 2/3 of 3 has variance 2/27; 0 of 1 has none
    assert row.metrics == {
        "forget_top1": 0.5, "forget_top5": 0.75, "forget_cosine": 0.2, "retain_top1": 2 / 3, "utility_top1": 0.0,
    }  # fmt: skip
    lower = evaluation(
        AFTER, candidate, 0.4, 0.3, forget_at_most=upper - 1e-9, forget_top5=0.75, closeness=0.2
    )
    assert not lower.feasible


def test_a_step_is_feasible_only_if_each_name_is_forgotten() -> None:
    """Of 40 outputs 4 are right, 10 %; all four are of the one name, of which that is 40 %."""
    right = [True] * 4 + [False] * 36
    names = ["Ada"] * 10 + ["Bea"] * 30
    together, apart = Hits(right, ["forget"] * 40), Hits(right, ["forget"] * 40, names)
    assert apart.of_each_name() == [right[:10], right[10:]]
    for hits, feasible in ((together, True), (apart, False)):
        row = evaluation(hits, Candidate({}, "text"), 1, 1, forget_at_most=0.25, forget_top5=0, closeness=0)
        assert row.feasible == feasible


def test_without_a_utility_set_what_is_kept_is_the_retain_set_alone() -> None:
    hits = Hits([False, True, True, False], ["forget", "retain", "retain", "retain"])
    row = evaluation(hits, Candidate({}, "text"), 1, 1, forget_at_most=1, forget_top5=0, closeness=0)
    assert row.kept == pytest.approx(2 / 3)
    assert row.kept_error == pytest.approx((2 / 9 / 3) ** 0.5)
    assert "utility_top1" not in row.metrics


def test_earlier_names_are_no_loss_and_must_stay_forgotten() -> None:
    """Ada was recognised once before, Bo never. Bo is back once, of 2: too often. Of 40 it is rarely enough."""
    roles, names = ["forget", "earlier", "earlier", "earlier", "earlier"], ["Cy", "Ada", "Ada", "Bo", "Bo"]
    before = Hits([True, True, False, False, False], roles, names)
    same = Hits([False, False, True, False, False], roles, names)
    back = Hits([False, False, False, True, False], roles, names)
    assert same.still_forgotten(before, 0.1)
    assert not back.still_forgotten(before, 0.1)
    assert back.still_forgotten(before, wilson(1, 2)[1])
    assert back.lost(before) == wilson(0, 0)[1]
    for hits, feasible in ((same, True), (back, False)):
        row = evaluation(
            hits,
            Candidate({"a": "b"}, "text"),
            1,
            1,
            forget_at_most=0.8,
            forget_top5=0,
            closeness=0,
            before=before,
        )
        assert row.feasible is feasible
        assert row.metrics["earlier_top1"] == 0.25
    many = Hits([False] * 39 + [True], ["earlier"] * 40, ["Bo"] * 40)
    assert many.still_forgotten(Hits([False] * 40, ["earlier"] * 40, ["Bo"] * 40), 0.15)

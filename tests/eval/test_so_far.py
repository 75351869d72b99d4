import tiny

from muwa.data.earlier import set_apart
from muwa.eval.clip.accuracy import Forget
from muwa.eval.so_far import sets_with, so_far
from muwa.run import Run
from muwa.types.metric import Metric, Reading


def test_two_metrics_of_which_the_objective_counts_one():
    asked = []

    def rate(roles, reading):
        asked.append(roles)
        return Metric(0.5, 2, reading=reading)

    reading = Reading("x", "lower", role="forgotten", in_objective=True, label="named")
    found = so_far("answered", reading, rate)
    assert list(found) == ["earlier/answered", "so_far/answered"]
    assert asked == [{"earlier"}, {"forget", "earlier"}]
    earlier, every = (metric.reading for metric in found.values())
    assert (earlier.role, earlier.in_objective, earlier.label) == ("earlier", True, "named")
    assert (every.role, every.in_objective, every.label) == ("", False, "")
    assert earlier.section == every.section == "Forgotten so far"
    assert every.text == "x (target: all names that were to be forgotten so far)"


def test_a_clip_is_measured_on_earlier_names_one_by_one_and_together():
    features = tiny.clip().observe(Run())
    plain = Forget()(features, tiny.task())
    assert list(plain) == ["forget/top1", "forget/top5"]
    task = set_apart(tiny.task(), ["Bo Hill", "Di Moss"], (1, 3, 9, 11))
    found = Forget()(features, task)
    assert found["forget/top1"].value == plain["forget/top1"].value
    assert set(found["earlier/top1"].by_name) == {"Bo Hill", "Di Moss"}
    assert set(found["so_far/top5"].by_name) == {"Ada Fox", "Bo Hill", "Di Moss"}
    assert found["so_far/top1"].n == found["forget/top1"].n + found["earlier/top1"].n
    assert [len(one) for one in sets_with(task.eval, frozenset({"forget", "earlier"}))] == [2, 4]

from dataclasses import replace

from report.finished import FIRST_GUESS, OTHERS, UA

from muwa.report.heat import HeatCell, heat
from muwa.types.metric import Metric, Reading


def run(name, readings, before, after):
    """The results of a run that forgot `name`."""
    sides = (
        {
            metric: Metric(value, 10, reading=reading).record()
            for (metric, reading), value in zip(readings.items(), values, strict=True)
        }
        for values in (before, after)
    )
    metrics = dict(zip(("before", "after"), sides, strict=True))
    return {"task": {"names": [name]}, "metrics": metrics, "verdict": {"rules": {"kept_points": 5.0}}}


def test_names_by_metrics_by_hand():
    """Ada twice: recognised in 0 and 50 %, others -1 and -3 points. Half of 55 % of colour for 25 % and more."""
    readings = {"retain/top1": OTHERS, "forget/top1": FIRST_GUESS, "unlabelled": replace(OTHERS, label="")}
    runs = [
        run("Ada", readings, (0.9, 1.0, 0.9), (0.89, 0.0, 0.1)),
        run("Ada", readings, (0.9, 1.0, 0.9), (0.87, 0.5, 0.1)),
        run("Bo", readings, (0.9, 1.0, 0.9), (0.7, 1.0, 0.1)),
    ]
    found = heat(runs)
    assert found.metrics == ("forget/top1", "retain/top1")  # the forgotten first
    assert list(found.rows) == [("Ada", 2), ("Bo", 1)]
    still, kept = found.rows["Ada", 2]
    assert (still.text, still.value, still.colour) == ("25 %", 0.25, 14)  # 0.25 x 55
    assert (kept.text, round(kept.value, 6), kept.colour) == ("-2.0", -2.0, 11)  # 2 of 10 points x 55
    still, kept = found.rows["Bo", 1]
    assert (still.text, still.colour) == ("100 %", 55)
    assert (kept.text, kept.colour) == ("-20.0", 55)  # no more than all of the colour


def test_a_rate_of_forgetting_shows_what_is_still_there_and_a_gain_has_no_colour():
    readings = {"forget/ua": UA, "retain/ira": OTHERS}
    one, other = (run(name, readings, (0.1, 0.5), (0.95, 0.6)) for name in ("Ada", "Bo"))
    still, kept = heat([one, other]).rows["Ada", 1]
    assert (still.text, still.colour) == ("5 %", 3)
    assert kept == HeatCell("+10.0", kept.value, 0)


def test_what_a_run_did_not_measure_is_empty_and_one_name_has_no_map():
    readings = {"forget/top1": FIRST_GUESS, "retain/top1": OTHERS}
    one = run("Ada", readings, (1.0, 0.9), (0.0, 0.9))
    other = run("Bo", {"forget/top1": FIRST_GUESS}, (1.0,), (0.0,))
    assert heat([one, other]).rows["Bo", 1][1] is None
    assert heat([one, one]) is None
    old = run("Bo", {"x": Reading("")}, (1.0,), (0.0,))
    for metric in old["metrics"]["after"].values():
        del metric["role"]
    assert heat([old, run("Ada", {"x": Reading("")}, (1.0,), (0.0,))]) is None

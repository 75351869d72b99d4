import pytest

from muwa.types.metric import Metric, Reading, still_recognised


@pytest.mark.parametrize(("better", "rate"), [("lower", 0.25), ("higher", 0.75), ("neither", 0.25)])
def test_the_rate_at_which_the_target_is_still_recognised(better, rate):
    assert still_recognised(0.25, better) == rate
    assert Metric(0.25, 8, reading=Reading(better=better)).still_recognised == rate


def test_a_record_holds_the_fields_of_the_metric_and_of_its_reading():
    reading = Reading(
        "share of images", "lower", role="forgotten", in_objective=True, label="named", gone_at=0.05
    )
    assert Metric(0.25, 8, 0.1, 0.6, reading).record() == {
        "value": 0.25,
        "n": 8,
        "low": 0.1,
        "high": 0.6,
        "better": "lower",
        "reads": "share of images",
        "unit": "rate",
        "role": "forgotten",
        "in_objective": True,
        "label": "named",
        "counted": "held-out images",
        "gone_at": 0.05,
        "section": "",
        "features": "",
        "capped": False,
        "by_name": {},
        "guessed": {},
    }

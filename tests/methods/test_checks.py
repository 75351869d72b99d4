from pathlib import Path

import pytest

from muwa.methods._checks import (
    check_above_zero,
    check_at_least,
    check_each_above_zero,
    check_granularity,
    refuse_gradient_file,
)
from muwa.run import Run


def test_a_setting_below_its_least_value_is_named():
    check_at_least({"epochs": (1, 1), "weight_decay": (0.0, 0)})
    with pytest.raises(ValueError, match=r"method\.epochs: got 0, want at least 1"):
        check_at_least({"weight_decay": (0.0, 0), "epochs": (0, 1)})
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"method\.weight_decay: got (nan|inf), want at least 0"):
            check_at_least({"weight_decay": (value, 0)})


def test_a_setting_that_is_not_above_zero_is_named():
    check_above_zero({"alpha": 1e-9})
    for value in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"method\.alpha: got {value}, want a number above 0"):
            check_above_zero({"step": 1.0, "alpha": value})


def test_a_list_of_settings_is_not_empty_and_each_element_is_above_zero():
    check_each_above_zero("scales", (0.1, 2.0))
    with pytest.raises(ValueError, match=r"method\.scales: got none, want at least one"):
        check_each_above_zero("scales", ())
    with pytest.raises(ValueError, match=r"method\.scales\[1\]: got -2, want a number above 0"):
        check_each_above_zero("scales", (1, -2))


def test_an_unknown_granularity_is_refused():
    check_granularity("head")
    with pytest.raises(ValueError, match=r"method\.granularity: got 'block', want one of tensor, "):
        check_granularity("block")


def test_a_gradient_file_is_refused_with_the_name_of_the_method():
    refuse_gradient_file("ga", Run())
    with pytest.raises(
        ValueError, match=r"gradients: method=ga takes no mean gradients; leave gradients=a/g out"
    ):
        refuse_gradient_file("ga", Run(gradient_file=Path("a/g")))

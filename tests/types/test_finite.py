import pytest
from torch import inf, nan, ones, tensor

from muwa.types.finite import check_finite
from muwa.types.gradients import Gradients


def test_finite_values_pass():
    check_finite({"a": ones(2), "b": tensor([1e38])}, "weight")


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_the_tensor_is_named_and_its_values_are_counted(value):
    said = r"weight b: 2 of 3 values are NaN or infinite \(1 of 2 tensors have such values\)"
    with pytest.raises(ValueError, match=said):
        check_finite({"a": ones(2), "b": tensor([1.0, value, value])}, "weight")


@pytest.mark.parametrize("which", ["forget", "retain"])
def test_gradients_are_refused_by_layer(which):
    given = {"forget": {"w": ones(2)}, "retain": {"w": ones(2)}, which: {"w": tensor([0.0, nan])}}
    with pytest.raises(ValueError, match=f"{which} gradient of w: 1 of 2 values are NaN or infinite"):
        Gradients(**given, n_forget=1, n_retain=1, origin={})

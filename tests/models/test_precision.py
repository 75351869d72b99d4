import pytest
import torch

from muwa.models.precision import dtype_named


@pytest.mark.parametrize(
    ("name", "bits", "largest"), [("fp32", 32, 3e38), ("fp16", 16, 6e4), ("bf16", 16, 3e38)]
)
def test_a_name_gives_its_type(name, bits, largest):
    """By its size and its range: fp16 ends at 65504, bf16 has the range of fp32."""
    about = torch.finfo(dtype_named(name))
    assert about.bits == bits
    assert largest < about.max < 1.2 * largest


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="model.dtype: got 'half', want one of fp32, fp16, bf16"):
        dtype_named("half")

import pytest
import tiny
import torch

from muwa.patch.weights import add_delta, equal, same_bits, tensor_digest, weights_fingerprint


@pytest.fixture
def weights():
    return {name: tensor.half() for name, tensor in tiny.clip().weights.items()}


def test_a_digest_is_of_the_value_not_the_dtype_that_holds_it(weights):
    for tensor in weights.values():
        assert tensor_digest(tensor) == tensor_digest(tensor.float())
    assert tensor_digest(torch.zeros(4)) != tensor_digest(torch.zeros(2, 2))
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))


def test_a_fingerprint_leaves_masks_and_counters_out(weights):
    more = {**weights, "attn_mask": torch.zeros(3, 3), "text_model.embeddings.position_ids": torch.arange(3)}
    assert weights_fingerprint(more) == weights_fingerprint(weights)
    assert (
        weights_fingerprint(more)
        == tiny.clip().with_weights({n: w.float() for n, w in weights.items()}).weights_fingerprint
    )
    assert weights_fingerprint({**weights, "extra": torch.ones(1)}) != weights_fingerprint(weights)


def test_a_delta_is_added_in_fp32_and_the_sum_is_cast_back():
    """bf16 numbers are 2 ** -7 apart above 1 and 2 apart above 256: 1.005 rounds up, and 259 to the even 260."""
    base = torch.tensor([1.0, 256.0], dtype=torch.bfloat16)
    edited = add_delta(base, torch.tensor([0.005, 3.0]))
    assert edited.dtype == torch.bfloat16
    assert edited.tolist() == [1 + 2.0**-7, 260.0]
    assert base.tolist() == [1, 256]


def test_equal_tensors_have_one_shape_one_dtype_and_the_same_values():
    ones = torch.ones(2)
    assert equal(ones, torch.ones(2))
    assert not equal(ones, torch.ones(2, 1))
    assert not equal(ones, torch.ones(2).half())
    assert not equal(ones, torch.zeros(2))
    assert equal(torch.tensor(0.0), torch.tensor(-0.0))  # equal values with other bits


def test_a_stored_tensor_may_be_rounded_to_half_precision_once():
    third = torch.tensor([1 / 3])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert same_bits(third.to(dtype), third)
    assert same_bits(third.bfloat16().half(), third)
    assert same_bits(third.half().float(), third)
    assert not same_bits(third + 1e-3, third)
    assert not same_bits(third[None], third)

import pytest
import tiny
import torch

from muwa.eval.clip.quantisation import Quantisation, converted, rounded
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def test_rounding_worked_by_hand():
    """Rows are channels: 127 steps to 2.54 are 0.02 each; a row of zeros stays."""
    weight = torch.tensor([[2.54, 0.029, -1.0], [0.0, 0.0, 0.0], [0.127, 0.0004, 0.0016]])
    want = torch.tensor([[2.54, 0.02, -1.0], [0.0, 0.0, 0.0], [0.127, 0.0, 0.002]])
    assert torch.allclose(rounded(weight, 8), want, atol=1e-6)


def test_columns_may_be_the_channels():
    weight = torch.tensor([[7.0, 0.7], [3.4, 0.26]])
    assert torch.allclose(rounded(weight, 4, 1), torch.tensor([[7.0, 0.7], [3.0, 0.3]]), atol=1e-6)


def test_eight_bits_are_as_torch_quantises_each_channel():
    weight = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scales = weight.abs().amax((1, 2, 3)) / 127
    zeros = torch.zeros(5, dtype=torch.int32)
    want = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
    assert torch.allclose(rounded(weight, 8), want, atol=1e-6)


def test_integers_leave_vectors_alone_and_projections_go_by_column():
    weights = tiny.clip().weights
    found = converted(weights, "int4")
    assert all(weights[name].ndim >= 2 for name in found)
    assert len(found["visual.proj"][:, 0].unique()) <= 15
    assert len(found["visual.proj"].unique()) > 15
    assert len(found["visual.transformer.resblocks.0.mlp.c_fc.weight"][0].unique()) <= 15


def test_casts_change_every_weight_but_by_little():
    weights = tiny.clip().weights
    found = converted(weights, "bf16")
    assert found.keys() == weights.keys()
    name = "visual.proj"
    assert found[name].dtype == torch.float32
    assert torch.equal(found[name], weights[name].bfloat16().float())
    assert not torch.equal(found[name], weights[name])


def test_the_metric_is_of_the_rounded_model():
    found = Quantisation(kinds=("int4", "fp16"))(Features(tiny.clip(), Run()), tiny.task())
    assert list(found) == ["quantised/int4_forget_top5", "quantised/int4_retain_top1", "quantised/fp16_forget_top5",
                           "quantised/fp16_retain_top1"]  # fmt: skip
    assert [metric.reading.better for metric in found.values()] == ["lower", "higher"] * 2
    assert "rounded to int4" in found["quantised/int4_retain_top1"].reading.text
    whole = tiny.clip()
    nothing = {name: torch.zeros_like(w) for name, w in whole.weights.items() if name == "visual.proj"}
    assert (
        Quantisation(kinds=("int8",))(Features(whole.with_weights(nothing), Run()), tiny.task())[
            "quantised/int8_retain_top1"
        ].value
        == 0
    )


def test_an_unknown_kind_is_named():
    with pytest.raises(
        ValueError, match="eval.quantisation.kinds: got 'int2', want some of int8, int4, bf16, fp16"
    ):
        Quantisation(kinds=("int8", "int2")).check(tiny.clip(), tiny.task())
    Quantisation(kinds=("int8", "int4", "bf16", "fp16")).check(tiny.clip(), tiny.task())

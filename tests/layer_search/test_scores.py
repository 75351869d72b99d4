from dataclasses import replace

import pytest
import torch

from muwa.layer_search.scores import layer_scores
from muwa.types.search import Layer, Part

ONE = {"w": torch.tensor([[3.0, 4.0]])}  # |theta| = 5


def layer(*parts: Part) -> Layer:
    return Layer("l", "vision", 0.5, parts, parts)


def test_worked_by_hand():
    got = layer_scores(
        ONE, {"w": torch.tensor([[0.0, 10.0]])}, {"w": torch.tensor([[1.0, -1.0]])}, [layer(Part("w"))]
    )
    assert got["l"].importance == pytest.approx(10 / 5)
    assert got["l"].cosine == pytest.approx(-(2**-0.5))
    assert got["l"].alignment == pytest.approx(2**-0.5)


def test_equals_torchs_cosine_similarity_on_random_tensors():
    g = torch.Generator().manual_seed(0)
    w, f, r = ({"w": torch.randn(8, 6, generator=g)} for _ in range(3))
    got = layer_scores(w, f, r, [layer(Part("w"))])["l"]
    want = torch.nn.functional.cosine_similarity(f["w"].flatten(), r["w"].flatten(), dim=0)
    assert got.cosine == pytest.approx(want.item(), rel=1e-5)
    assert got.importance == pytest.approx((f["w"].norm() / w["w"].norm()).item(), rel=1e-5)


def test_a_slice_scores_only_its_rows_and_several_parts_are_one_vector():
    w = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([[2.0]])}
    f = {"a": torch.tensor([[9.0], [4.0]]), "b": torch.tensor([[2.0]])}
    parts = (Part("a", 0, 1, 1), Part("b"))  # weights (2, 2), gradient (4, 2)
    got = layer_scores(w, f, f, [layer(*parts)])["l"]
    assert got.importance == pytest.approx((20 / 8) ** 0.5)
    assert got.alignment == pytest.approx(1)


def test_zero_gradient_scores_zero():
    got = layer_scores(ONE, {"w": torch.zeros(1, 2)}, ONE, [layer(Part("w"))])["l"]
    assert (got.importance, got.alignment) == (0, 0)


def test_without_a_retain_gradient_there_is_no_alignment():
    g_f = {"w": torch.tensor([[0.0, 10.0]])}
    both = layer_scores(ONE, g_f, ONE, [layer(Part("w"))])["l"]
    alone = layer_scores(ONE, g_f, {}, [layer(Part("w"))])["l"]
    assert alone == replace(both, alignment=None, cosine=None, retain_norm=None)


def test_shape_mismatch_names_the_layer():
    with pytest.raises(ValueError, match=r"l: weights \(1, 2\), retain gradient \(2,\)"):
        layer_scores(ONE, {"w": torch.ones(1, 2)}, {"w": torch.ones(2)}, [layer(Part("w"))])
    with pytest.raises(ValueError, match=r"l: weights \(1, 2\), forget gradient \(2,\)"):
        layer_scores(ONE, {"w": torch.ones(2)}, {"w": torch.ones(1, 2)}, [layer(Part("w"))])


def test_zero_weights_name_the_layer():
    with pytest.raises(ValueError, match="l: its weights are all zero"):
        layer_scores({"w": torch.zeros(1, 2)}, ONE, ONE, [layer(Part("w"))])


def test_missing_gradient_names_the_parameter():
    with pytest.raises(KeyError, match="w: no gradient"):
        layer_scores(ONE, {}, ONE, [layer(Part("w"))])

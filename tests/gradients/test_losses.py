import math

import pytest
import torch

from muwa.gradients.losses import by_name, contrastive, cosine


def test_cosine_is_one_minus_the_mean_of_matched_pairs():
    images = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    texts = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
    assert cosine(images, texts, torch.tensor(100.0)).item() == pytest.approx((1 + 0) / 2)


def test_cosine_equals_torchs_own_with_target_one():
    v, t = (
        torch.nn.functional.normalize(torch.randn(5, 7, generator=torch.Generator().manual_seed(s)), dim=-1)
        for s in (1, 2)
    )
    torch.testing.assert_close(
        cosine(v, t, torch.tensor(1.0)), torch.nn.CosineEmbeddingLoss()(v, t, torch.ones(5))
    )


def test_contrastive_worked_by_hand():
    # logits [[2, 0], [0, 2]]: each row's cross entropy is log(1 + e^-2), in both directions
    eye = torch.eye(2)
    assert contrastive(eye, eye, torch.tensor(2.0)).item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_contrastive_is_not_symmetric_in_its_two_directions_but_averages_them():
    v, t = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    # image -> text: rows [1, 0], [1, 0]: log(1+e^-1), log(1+e); text -> image: rows [1, 1], [0, 0]: log 2 each
    want = (((math.log(1 + math.exp(-1)) + math.log(1 + math.e)) / 2) + math.log(2)) / 2
    assert contrastive(v, t, torch.tensor(1.0)).item() == pytest.approx(want)


def test_unknown_loss_lists_the_known():
    with pytest.raises(ValueError, match="got 'cosin', want one of cosine, contrastive"):
        by_name("cosin")

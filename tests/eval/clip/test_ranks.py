import pytest
import torch

from muwa.eval.clip.ranks import own_cosine, own_margin, top_k

CLASSES = torch.eye(4)


def test_top_k_worked_by_hand():
    features = torch.tensor([[0.9, 0.4, 0.1, 0.0], [0.9, 0.4, 0.1, 0.0]])
    labels = torch.tensor([1, 2])
    assert top_k(features, CLASSES, labels, 1).tolist() == [False, False]
    assert top_k(features, CLASSES, labels, 2).tolist() == [True, False]
    assert top_k(features, CLASSES, labels, 3).tolist() == [True, True]


def test_ties_count_against_the_picture():
    collapsed = torch.full((1, 4), 0.5)
    assert top_k(collapsed, CLASSES, torch.tensor([0]), 3).tolist() == [False]


def test_k_is_cut_where_every_answer_would_be_right():
    features = torch.tensor([[0.9, 0.4, 0.1, 0.0]])
    assert top_k(features, CLASSES, torch.tensor([3]), 5).tolist() == [False]
    assert top_k(features, CLASSES, torch.tensor([2]), 5).tolist() == [True]


def test_no_pictures():
    assert top_k(torch.zeros(0, 4), CLASSES, torch.zeros(0, dtype=torch.long), 1).tolist() == []


def test_own_cosine():
    features = torch.tensor([[0.6, 0.8, 0, 0]])
    assert own_cosine(features, CLASSES, torch.tensor([1])).tolist() == [0.800000011920929]


def unit(*shape, seed):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=-1, keepdim=True)


def test_own_margin_worked_by_hand():
    """Cosines 0.9, 0.4, 0.1 and 0: the second class is 0.5 behind the first, and 0.3 and 0.4 before the others."""
    features, label = torch.tensor([[0.9, 0.4, 0.1, 0.0]]), torch.tensor([1])
    assert [round(own_margin(features, CLASSES, label, k).item(), 5) for k in (1, 2, 3)] == [-0.5, 0.3, 0.4]
    assert (
        own_margin(features, CLASSES, label, 9).tolist() == own_margin(features, CLASSES, label, 3).tolist()
    )


@pytest.mark.parametrize("k", [1, 2, 5, 7, 20])
def test_a_margin_above_0_is_an_image_among_the_nearest(k):
    features, classes, labels = unit(200, 4, seed=0), unit(8, 4, seed=1), torch.arange(200) % 8
    margins, right = own_margin(features, classes, labels, k), top_k(features, classes, labels, k)
    assert torch.equal(margins > 0, right)
    assert 0 < right.sum() < 200


def test_a_tie_is_a_margin_of_0_and_not_recognised():
    features, classes = torch.tensor([[0.5, 0.5, 0.0, 0.0]]), CLASSES
    assert own_margin(features, classes, torch.tensor([0]), 1).item() == 0.0
    assert not top_k(features, classes, torch.tensor([0]), 1).any()

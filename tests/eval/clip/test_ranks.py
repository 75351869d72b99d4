import torch

from muwa.eval.clip.ranks import own_cosine, top_k

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

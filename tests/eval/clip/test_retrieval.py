import pytest
import tiny
import torch

from muwa.eval.clip.retrieval import Retrieval, first_hit
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def test_the_first_right_one_by_hand():
    """Ranked 2 0 1: the right ones, 0 and 1, come second; a wrong one as near counts as before."""
    similarities = torch.tensor([[0.5, 0.4, 0.9], [0.5, 0.5, 0.1]])
    right = torch.tensor([[True, True, False], [True, False, False]])
    assert first_hit(similarities, right).tolist() == [2, 2]
    assert first_hit(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).tolist() == []
    assert first_hit(torch.tensor([[float("nan")] * 2]), torch.tensor([[True, False]])).tolist() == [2]


def test_recalls_are_those_of_sorted_lists():
    model, task = tiny.clip(), tiny.task()
    images = (*task.eval.retain.images, *task.eval.forget.images)
    whose = [*task.eval.retain.labels, *task.eval.forget.labels]
    v = torch.cat([model.encode("vision", tiny.pixels([image])) for image in images])
    t = torch.cat([model.encode("text", tiny.tokenize([f"{name}."])) for name in tiny.NAMES])
    table = (v @ t.T).tolist()
    found = Retrieval(ks=(1, 3))(Features(model, Run()), task)
    for k in (1, 3):
        names = [sorted(range(8), key=lambda c, row=row: -row[c])[:k] for row in table]
        hits = [label in row for label, row in zip(whose, names, strict=True)]
        assert found[f"retrieval/image_to_text_{k}"].value == pytest.approx(sum(hits[:7]) / 7)
        assert found[f"retrieval/forget_image_to_text_{k}"].value == pytest.approx(sum(hits[7:]) / 2)
        shown = {c: sorted(range(9), key=lambda i, c=c: -table[i][c])[:k] for c in range(8)}
        back = [any(whose[i] == c for i in shown[c]) for c in range(8)]
        assert found[f"retrieval/text_to_image_{k}"].value == pytest.approx(sum(back[1:]) / 7)
        assert found[f"retrieval/forget_text_to_image_{k}"].value == float(back[0])


def test_queries_are_counted_and_directions_said():
    found = Retrieval(ks=(1, 5, 10))(Features(tiny.clip(), Run()), tiny.task())
    assert len(found) == 12
    assert (found["retrieval/image_to_text_5"].n, found["retrieval/text_to_image_5"].n) == (7, 7)
    assert (found["retrieval/forget_image_to_text_1"].n, found["retrieval/forget_text_to_image_1"].n) == (
        2,
        1,
    )
    assert found["retrieval/forget_image_to_text_1"].reading.better == "lower"
    assert found["retrieval/text_to_image_10"].reading.better == "higher"
    with pytest.raises(ValueError, match="eval.retrieval.ks: got 0, want numbers of at least 1"):
        Retrieval(ks=(1, 0)).check(tiny.clip(), tiny.task())
    Retrieval(ks=(1,)).check(tiny.clip(), tiny.task())

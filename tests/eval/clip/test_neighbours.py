import numpy as np
import pytest
import tiny
import torch
from scipy.stats import spearmanr

from muwa.cache.store import Store
from muwa.eval.clip.accuracy import over_names
from muwa.eval.clip.neighbours import GROUPS, Neighbours, correlation, ranked, surprise
from muwa.models.clip.embeddings import Features
from muwa.run import Run


def test_ranks_are_correlated_as_scipy_does():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (3, 20)), rng.normal(size=(3, 20))
    assert ranked(x, y) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_a_correlation_worked_by_hand():
    """Ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * 2 / (4 * 15) = 0.8."""
    found = correlation(torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, 9.0, 3.0]))
    assert found.value == pytest.approx(0.8)
    assert -1 <= found.low <= 0.8 <= found.high <= 1


def test_nothing_harmed_is_no_correlation():
    found = correlation(torch.tensor([0.1, 0.2, 0.3]), torch.zeros(3))
    assert (found.value, found.n, found.low) == (0.0, 3, None)


def test_surprise_is_the_cross_entropy_by_hand():
    model, pictures = tiny.clip(), tiny.pictures([2, 5])
    v = torch.cat([model.encode("vision", tiny.pixels([image])) for image in pictures.images])
    t = model.encode("text", tiny.tokenize([f"{name}." for name in tiny.NAMES]))
    p = (model.weights["logit_scale"].exp() * v @ t.T).softmax(-1)
    want = [-p[0, 2].log().item(), -p[1, 5].log().item()]
    assert surprise(Features(model, Run()), pictures).tolist() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("by", ["pictures", "names"])
def test_names_are_grouped_from_the_nearest_on(tmp_path, by):
    """Seven names in five groups are 2 2 1 1 1; which, by cosines of the unedited model taken one by one."""
    model, task = tiny.clip(), tiny.task()
    edited = model.with_weights({"visual.proj": model.weights["visual.proj"] + 0.3 * torch.randn(32, 16)})
    if by == "names":
        vectors = model.encode("text", tiny.tokenize([f"{name}." for name in tiny.NAMES]))
    else:
        ada = torch.cat(
            [model.encode("vision", tiny.pixels([image])) for image in task.eval.forget.images]
        ).mean(0)
        vectors = torch.stack(
            [ada, *(model.encode("vision", tiny.pixels([i]))[0] for i in task.eval.retain.images)]
        )
    like = torch.cosine_similarity(vectors[1:], vectors[:1]).detach()
    order = like.argsort(descending=True).tolist()
    found = Neighbours(by=by)(Features(edited, Run(Store(tmp_path))), task)
    assert list(found) == [*(f"neighbours/{name}" for name in GROUPS), "neighbours/correlation"]
    assert [found[f"neighbours/{name}"].n for name in GROUPS] == [2, 2, 1, 1, 1]
    seen, names = Features(edited, Run()), [f"{name}." for name in tiny.NAMES]
    cosines = seen.images(task.eval.retain) @ edited.encode("text", tiny.tokenize(names)).detach().T
    right = (cosines.argmax(1) == torch.tensor(task.eval.retain.labels)).double()
    assert found["neighbours/nearest"].value == pytest.approx(right[order[:2]].mean().item())
    assert found["neighbours/farthest"].value == right[order[6]].item()
    for name, some in (("nearest", order[:2]), ("near", order[2:4]), ("farthest", order[6:])):
        group, of_names = found[f"neighbours/{name}"], over_names(right[some].bool(), torch.tensor(some))
        assert (group.value, group.n, group.low, group.high) == pytest.approx(of_names)
    harm = surprise(seen, task.eval.retain) - surprise(Features(model, Run()), task.eval.retain)
    assert found["neighbours/correlation"].value == pytest.approx(spearmanr(like, harm).statistic, abs=1e-6)


def test_the_unedited_model_harmed_nobody():
    found = Neighbours(by="pictures")(Features(tiny.clip(), Run()), tiny.task())
    metric = found["neighbours/correlation"]
    assert (metric.value, metric.low) == (0.0, None)
    assert (metric.reading.unit, metric.reading.better) == ("correlation", "neither")
    assert {m.reading.section for m in found.values()} == {"Look-alikes"}


def test_another_likeness_is_named():
    with pytest.raises(ValueError, match="eval.neighbours.by: got 'age', want one of pictures, names"):
        Neighbours(by="age").check(tiny.clip(), tiny.task())
    for by in ("pictures", "names"):
        Neighbours(by=by).check(tiny.clip(), tiny.task())

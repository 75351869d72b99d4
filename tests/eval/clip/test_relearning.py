from dataclasses import replace

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.eval.clip.relearning import relearn, relearning, steps_until_back
from muwa.models.clip.embeddings import Features

KNOWN = torch.tensor([True, True, True, False])


def judged():
    return tiny.pictures([0, 0, 0, 0])


def test_half_of_what_was_known_by_hand():
    """1.5 of 3 must be back: two are at the third look, two steps apart: step 4."""
    hits = torch.tensor([[False] * 4, [True, False, False, False], [True, True, False, False], [True] * 4])
    found = steps_until_back(hits, KNOWN, 100, 2, "r")
    assert (found.value, found.n, found.better) == (4.0, 4, "higher")
    assert 0 <= found.low <= 4 <= found.high <= 100


def test_never_is_the_cap_and_at_once_is_0():
    never = torch.zeros(51, 4, dtype=torch.bool)
    assert steps_until_back(never, KNOWN, 50, 1, "").value == 50
    assert steps_until_back(KNOWN[None], KNOWN, 50, 1, "").value == 0
    unknown = steps_until_back(never, torch.zeros(4, dtype=torch.bool), 50, 1, "")
    assert (unknown.value, unknown.low) == (50.0, None)
    assert "knew none" in unknown.reads


def settings(**changed):
    return {"loss": "cosine", "known": 4, "steps": 30, "every": 1, "learning_rate": 3e-3, "weight_decay": 0.0,
            "batch_size": 8, "seed": 0, **changed}  # fmt: skip


def test_the_first_step_is_adamws_and_the_model_is_left_alone():
    """One AdamW step on the cosine loss, taken by torch itself on the whole batch."""
    model, pairs, pictures = tiny.clip(), tiny.pairs(3, names=tiny.NAMES[:1]), judged()
    before = {name: w.clone() for name, w in model.weights.items()}
    hits = relearn(model, pairs, pictures, **settings(known=5, steps=1))
    assert all(torch.equal(model.weights[name], w) for name, w in before.items())
    own = {name: w.clone().requires_grad_() for name, w in before.items()}
    v = model.encode("vision", tiny.pixels(pairs.images), own)
    t = model.encode("text", tiny.tokenize(list(pairs.captions)), own)
    descent = torch.optim.AdamW(own.values(), lr=3e-3, weight_decay=0.0)
    (1 - (v * t).sum(1)).mean().backward()
    descent.step()
    tuned = model.with_weights({name: w.detach() for name, w in own.items()})
    for row, one in zip(hits, (model, tuned), strict=True):
        images = one.encode("vision", tiny.pixels(pictures.images))
        names = one.encode("text", tiny.tokenize([f"{name}." for name in tiny.NAMES]))
        assert torch.equal(row, (images @ names.T).argmax(1) == 0)


def test_tuning_on_the_name_brings_it_back_and_stops():
    """Contrastive steps on one picture of each name, captioned as it is asked for; the looks end when all four are known."""
    pairs = replace(tiny.pairs(8), captions=tuple(f"{name}." for name in tiny.NAMES))
    hits = relearn(tiny.clip(), pairs, judged(), **settings(loss="contrastive", steps=200))
    assert hits[-1].all()
    assert 1 < len(hits) < 201
    assert not hits[:-1].all(1).any()


def test_each_fine_tuning_has_its_number_and_is_read_back(tmp_path):
    store = Store(tmp_path)
    features = Features(
        tiny.clip().with_weights({"visual.proj": torch.randn(32, 16, generator=torch.Generator().manual_seed(3))}),
        store,
    )
    found = relearning(features, tiny.task(), shots=(1, 5), steps=3)
    assert list(found) == ["relearn/steps_1", "relearn/steps_5", "relearn/steps_others"]
    assert all(0 <= metric.value <= 3 for metric in found.values())
    assert "5 forget pairs" in found["relearn/steps_5"].reads
    again = Store(tmp_path)
    assert relearning(Features(features.model, again), tiny.task(), shots=(1, 5), steps=3) == found
    assert again.events["relearning"] == "hit"


def test_settings_are_checked():
    for key, value in {"steps": 0, "every": 0, "batch_size": 1, "shots": (0,), "learning_rate": 0.0}.items():
        with pytest.raises(ValueError, match=f"eval.relearning.{key}: got 0|eval.relearning.batch_size: got 1"):
            relearning(Features(tiny.clip()), tiny.task(), **{key: value})


@pytest.mark.parametrize("left", [0, 1])
def test_without_pairs_of_others_that_is_said_before_any_compute(tmp_path, left):
    """All twelve retain pairs name the forgotten, or all but one."""
    store, task = Store(tmp_path), replace(tiny.task(), mentions=tuple(range(12 - left)))
    want = rf"eval.relearning.others: got {left} retain pairs .*, want at least 2; set eval.relearning.others=false"
    with pytest.raises(ValueError, match=want):
        relearning(Features(tiny.clip(), store), task, shots=(1,), steps=1)
    assert not store.events
    assert list(relearning(Features(tiny.clip()), task, shots=(1,), others=False, steps=1)) == ["relearn/steps_1"]

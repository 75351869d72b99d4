from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.eval.clip.relearning import TuningSettings, _batches, reading, relearn, steps_until_back
from muwa.models.clip.embeddings import Features
from muwa.run import Run

KNOWN = torch.tensor([True, True, True, False])


def relearning(**changed):
    return replace(part("eval=[relearning]")["relearning"], **changed)


def judged():
    return tiny.pictures([0, 0, 0, 0])


def test_half_of_what_was_known_by_hand():
    """1.5 of 3 must be back: two are at the third look, two steps apart: step 4."""
    hits = torch.tensor([[False] * 4, [True, False, False, False], [True, True, False, False], [True] * 4])
    found = steps_until_back(hits, KNOWN, 100, 2, reading("5", 5, 100))
    assert (found.value, found.n, found.capped) == (4.0, 4, False)
    assert (found.reading.better, found.reading.unit) == ("higher", "steps")
    assert 0 <= found.low <= 4 <= found.high <= 100


def test_never_is_the_cap_and_at_once_is_0():
    reads = reading("others", 12, 50)
    assert reads.text == (
        "steps of fine-tuning on retain pairs that do not mention the target until at least half as many "
        "held-out images are recognised as by the unedited model; > 50 means not within 50 steps"
    )
    never = torch.zeros(51, 4, dtype=torch.bool)
    metric = steps_until_back(never, KNOWN, 50, 1, reads)
    assert (metric.value, metric.capped) == (50, True)
    metric = steps_until_back(KNOWN[None], KNOWN, 50, 1, reads)
    assert (metric.value, metric.capped) == (0, False)
    unknown = steps_until_back(never, torch.zeros(4, dtype=torch.bool), 50, 1, reads)
    assert (unknown.value, unknown.low, unknown.capped) == (50.0, None, True)
    assert unknown.reading == replace(reads, text=f"{reads.text}; the unedited model recognised none")


def test_what_is_back_at_the_last_step_is_not_capped():
    hits = torch.zeros(51, 4, dtype=torch.bool)
    hits[-1] = True
    metric = steps_until_back(hits, KNOWN, 50, 1, reading("5", 5, 50))
    assert (metric.value, metric.capped) == (50, False)


def settings(**changed):
    tuning = TuningSettings(
        "cosine", 4, steps=30, every=1, learning_rate=3e-3, weight_decay=0.0, batch_size=8, seed=0
    )
    return replace(tuning, **changed)


def test_the_first_step_is_adamws_and_the_model_is_left_alone():
    """One AdamW step on the cosine loss, taken by torch itself on the whole batch."""
    model, pairs, pictures = tiny.clip(), tiny.pairs(3, names=tiny.NAMES[:1]), judged()
    before = {name: w.clone() for name, w in model.weights.items()}
    hits = relearn(model, pairs, pictures, settings(enough=5, steps=1), run=Run())
    assert all(torch.equal(model.weights[name], w) for name, w in before.items())
    own = {name: w.clone().requires_grad_() for name, w in before.items()}
    v = model.encode("vision", tiny.pixels(pairs.images), own)
    t = model.encode("text", tiny.tokenize(list(pairs.captions)), own)
    optimiser = torch.optim.AdamW(own.values(), lr=3e-3, weight_decay=0.0)
    (1 - (v * t).sum(1)).mean().backward()
    optimiser.step()
    tuned = model.with_weights({name: w.detach() for name, w in own.items()})
    for row, one in zip(hits, (model, tuned), strict=True):
        images = one.encode("vision", tiny.pixels(pictures.images))
        names = one.encode("text", tiny.tokenize([f"{name}." for name in tiny.NAMES]))
        assert torch.equal(row, (images @ names.T).argmax(1) == 0)


def test_tuning_on_the_name_brings_it_back_and_stops():
    """Contrastive steps on one picture of each name, captioned as it is asked for; the looks end when all four are known."""
    pairs = replace(tiny.pairs(8), captions=tuple(f"{name}." for name in tiny.NAMES))
    hits = relearn(tiny.clip(), pairs, judged(), settings(loss="contrastive", steps=200), run=Run())
    assert hits[-1].all()
    assert 1 < len(hits) < 201
    assert not hits[:-1].all(1).any()


def test_an_order_is_used_until_fewer_than_a_batch_are_left():
    """Five pairs in twos: two batches of each order, its fifth pair is left out. Of two pairs both are in every batch."""
    batches, rng = _batches(5, settings(batch_size=2, seed=3)), np.random.default_rng(3)
    for _ in range(3):
        order = rng.permutation(5).tolist()
        assert [next(batches), next(batches)] == [order[:2], order[2:4]]
    assert sorted(next(_batches(2, settings(batch_size=8)))) == [0, 1]


def test_a_loss_that_is_no_longer_finite_ends_it():
    with pytest.raises(
        ValueError,
        match=r"eval.relearning.learning_rate: the loss is (nan|inf) at step \d+; use a lower learning rate",
    ):
        relearn(tiny.clip(), tiny.pairs(3), judged(), settings(learning_rate=1e30, enough=5), run=Run())


def test_each_fine_tuning_has_its_number_and_is_read_back(tmp_path):
    store = Store(tmp_path)
    features = Features(
        tiny.clip().with_weights(
            {"visual.proj": torch.randn(32, 16, generator=torch.Generator().manual_seed(3))}
        ),
        Run(store),
    )
    found = relearning(shots=(1, 5), steps=3)(features, tiny.task())
    assert list(found) == ["relearn/steps_1", "relearn/steps_5", "relearn/steps_others"]
    assert all(0 <= metric.value <= 3 for metric in found.values())
    assert "5 forget pairs" in found["relearn/steps_5"].reading.text
    again = Store(tmp_path)
    assert relearning(shots=(1, 5), steps=3)(Features(features.model, Run(again)), tiny.task()) == found
    assert again.events["relearning"] == "hit"


def test_settings_are_checked():
    for key, value in {"steps": 0, "every": 0, "batch_size": 1, "shots": (0,), "learning_rate": 0.0}.items():
        with pytest.raises(
            ValueError, match=f"eval.relearning.{key}: got 0|eval.relearning.batch_size: got 1"
        ):
            relearning(**{key: value}).check(tiny.clip(), tiny.task())


@pytest.mark.parametrize("left", [0, 1])
def test_without_pairs_of_others_that_is_said_before_any_compute(left):
    """All twelve retain pairs mention the target, or all but one."""
    task = replace(tiny.task(), mentions=tuple(range(12 - left)))
    want = rf"eval.relearning.others: got {left} retain pairs .*, want at least 2; set eval.relearning.others=false"
    with pytest.raises(ValueError, match=want):
        relearning(shots=(1,), steps=1).check(tiny.clip(), task)
    shots_only = relearning(shots=(1,), others=False, steps=1)
    shots_only.check(tiny.clip(), task)
    assert list(shots_only(Features(tiny.clip(), Run()), task)) == ["relearn/steps_1"]

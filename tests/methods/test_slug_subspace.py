from dataclasses import replace

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.gradients import subspaces
from muwa.methods import slug, slug_subspace

FEW = {"batch_size": 4}


@pytest.mark.parametrize("kind", ["gradient", "fisher", "activations"])
def test_it_searches_along_another_direction_than_slug(tmp_path, kind):
    model, task = tiny.clip(), tiny.task()
    plain = slug.unlearn(model, task, store=Store(tmp_path), **FEW)
    other = slug_subspace.unlearn(model, task, store=Store(tmp_path), subspace=kind, rank=4, **FEW)
    assert other.searches[0].scores.keys() == plain.searches[0].scores.keys()
    ours, theirs = other.searches[0].scores, plain.searches[0].scores
    smaller = [name for name in ours if ours[name].forget_norm < theirs[name].forget_norm * 0.999]
    assert len(smaller) >= 10
    assert all(ours[name].forget_norm <= theirs[name].forget_norm * 1.001 for name in ours)
    assert [row.retain_norm for row in ours.values()] == [row.retain_norm for row in theirs.values()]


def test_requests_share_what_the_retained_pairs_use_less_what_mentions_the_forgotten(tmp_path, monkeypatch):
    model, task, taken = tiny.clip(), tiny.task(), []
    kept = task.retain.select([i for i in range(12) if i not in task.mentions])
    want = subspaces.second_moments(model, kept, kind="activations", loss="contrastive", batch_size=4, seed=0)
    real = slug_subspace.without
    monkeypatch.setattr(
        slug_subspace,
        "without",
        lambda found, moments, **more: (taken.append(moments), real(found, moments, **more))[1],
    )
    for mentions in (task.mentions, ()):
        store = Store(tmp_path)
        slug_subspace.unlearn(model, replace(task, mentions=mentions), store=store, **FEW)
    assert store.events["subspace"] == "hit"
    assert taken[0].keys() == taken[1].keys() == want.keys()
    for name, moment in want.items():
        torch.testing.assert_close(taken[0][name], moment, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(taken[1][name], moment, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ({"subspace": "hessian"}, "method.subspace: got 'hessian', want one of gradient, fisher, activations"),
    ({"energy": 1.0}, "method.energy: got 1.0"), ({"rank": 0}, "method.rank: got 0"),
])  # fmt: skip
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        slug_subspace.unlearn(tiny.clip(), tiny.task(), store=Store(tmp_path), **settings)
    assert not list(tmp_path.rglob("value.json"))

import pytest
import tiny

from muwa.cache import Store
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


@pytest.mark.parametrize(("settings", "message"), [
    ({"subspace": "hessian"}, "method.subspace: got 'hessian', want one of gradient, fisher, activations"),
    ({"energy": 1.0}, "method.energy: got 1.0"), ({"rank": 0}, "method.rank: got 0"),
])  # fmt: skip
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        slug_subspace.unlearn(tiny.clip(), tiny.task(), store=Store(tmp_path), **settings)
    assert not list(tmp_path.rglob("value.json"))

from dataclasses import replace

import pytest
import tiny
import torch
from records import part

from muwa.cache.store import Store
from muwa.gradients.base import Recipe
from muwa.gradients.mean import ClipGradients
from muwa.gradients.subspaces import ProjectedGradients
from muwa.methods.base import make_edit
from muwa.run import Run

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


def subspace(**changed):
    return part("method=slug_subspace", **{"batch_size": 4, **changed})


@pytest.mark.parametrize("kind", ["gradient", "fisher", "activations"])
def test_it_searches_along_another_direction_than_slug(tmp_path, kind):
    model, task, run = tiny.clip(), tiny.task(), Run(Store(tmp_path))
    plain = make_edit(part("method=slug", batch_size=4), model, task, run)
    other = make_edit(subspace(subspace=kind, rank=4), model, task, run)
    assert other.searches[0].scores.keys() == plain.searches[0].scores.keys()
    ours, theirs = other.searches[0].scores, plain.searches[0].scores
    smaller = [name for name in ours if ours[name].forget_norm < theirs[name].forget_norm * 0.999]
    assert len(smaller) >= 10
    assert all(ours[name].forget_norm <= theirs[name].forget_norm * 1.001 for name in ours)
    assert [row.retain_norm for row in ours.values()] == [row.retain_norm for row in theirs.values()]


def test_the_step_is_along_the_projected_gradient():
    model, task = tiny.clip(), tiny.task()
    fixed = part("layer_search=fixed", layer="visual.proj", step=2.5)
    edit = make_edit(subspace(layer_search=fixed, subspace="gradient", rank=3), model, task, Run())
    source = ProjectedGradients(ClipGradients(), "gradient", 0.95, 3)
    gradients = source(model, task, tiny.NAMES[0], RECIPE, Run())[""]
    torch.testing.assert_close(edit.deltas["visual.proj"], 2.5 * gradients.forget["visual.proj"])


def test_requests_share_the_activations_of_the_retain_set(tmp_path):
    model, task = tiny.clip(), tiny.task()
    make_edit(subspace(), model, task, Run(Store(tmp_path)))
    store = Store(tmp_path)
    make_edit(subspace(), model, replace(task, mentions=()), Run(store))
    assert store.events["moments/inputs"] == "hit"


@pytest.mark.parametrize(("kind", "samples"), [("gradient", 16), ("activations", 16), ("fisher", 26)])
def test_samples_count_a_second_pass_with_gradients(kind, samples):
    """6 forget pairs, 12 retain pairs less 2 that mention the name; fisher takes gradients of these 10 again."""
    fixed = part("layer_search=fixed", layer="visual.proj", step=1.0)
    edit = make_edit(subspace(layer_search=fixed, subspace=kind), tiny.clip(), tiny.task(), Run())
    assert edit.samples == samples


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"subspace": "hessian"},
            "method.subspace: got 'hessian', want one of gradient, fisher, activations",
        ),
        ({"energy": 1.0}, "method.energy: got 1.0"),
        ({"rank": 0}, "method.rank: got 0"),
        ({"batch_size": 0}, "method.batch_size: got 0"),
        ({"layer_search": part("layer_search=pareto_bisect", max_evals=0)}, "layer_search.max_evals: got 0"),
    ],
)
def test_bad_settings_are_named_before_any_compute(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_edit(subspace(**settings), tiny.clip(), tiny.task(), Run(Store(tmp_path)))
    assert not list(tmp_path.rglob("value.json"))

from dataclasses import replace

import pytest
import tiny

from muwa.cache import Store
from muwa.gradients import Recipe, gradients
from muwa.layer_search.common import edit_of
from muwa.layer_search.grid import fixed, grid

RECIPE = Recipe("cosine", "contrastive", 4, 0)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return gradients(tiny.clip(), tiny.task(), tiny.NAMES[0], RECIPE, store=Store(tmp_path_factory.mktemp("c")))


def try_grid(found, **settings):
    return grid(tiny.clip(), found, tiny.split(), tiny.NAMES[0], **settings)


def test_every_pair_of_layer_and_step_is_tried_in_order(found):
    layers, steps = ["visual.proj", "text_projection"], [0.01, 0.02, 0.04]
    search = try_grid(found, layers=layers, relative_steps=steps)
    assert [(row.layer, row.iteration) for row in search.trace] == [(name, i) for name in layers for i in (1, 2, 3)]
    assert [row.relative_norm for row in search.trace] == pytest.approx(steps * 2, rel=1e-4)
    assert [row.tower for row in search.trace] == ["vision"] * 3 + ["text"] * 3


def test_a_step_may_be_given_as_lambda(found):
    by_size = try_grid(found, layers=["visual.proj"], relative_steps=[0.03])
    by_lambda = try_grid(found, layers=["visual.proj"], relative_steps=None, steps=[by_size.trace[0].step])
    assert by_lambda.trace == by_size.trace


def test_without_layers_the_front_is_tried(found):
    search = try_grid(found, relative_steps=[0.1])
    assert [row.layer for row in search.trace] == list(search.front)
    assert {row.tower for row in search.trace} == {"vision", "text"}
    only = try_grid(found, relative_steps=[0.1], towers=["text"])
    assert {row.tower for row in only.trace} == {"text"}


def test_exactly_one_kind_of_step(found):
    for both in ({"steps": [1.0], "relative_steps": [0.1]}, {"steps": None, "relative_steps": None}):
        with pytest.raises(ValueError, match="give exactly one of steps .* and relative_steps"):
            try_grid(found, layers=["visual.proj"], **both)


def test_an_unknown_layer_is_answered_with_the_nearest(found):
    with pytest.raises(ValueError, match=r"layer_search.layer: 'visual.prj' is not one of the .* Nearest: visual.proj"):
        try_grid(found, layers=["visual.prj"])


def test_constrained_refuses_what_does_not_forget_and_paper_takes_it(found):
    known = tiny.pictures(list(range(8)))  # a random model puts some of eight in its first five
    probe = replace(tiny.split(), forget=known)
    for rule, chosen in (("constrained", None), ("paper", 0)):
        search = grid(
            tiny.clip(), found, probe, tiny.NAMES[0], layers=["visual.proj"], relative_steps=[1e-6], rule=rule
        )
        assert search.before.forget_top5 > 0
        assert search.chosen == chosen
        assert not search.trace[0].feasible


def test_fixed_is_a_grid_of_one_and_its_edit_is_that_step(found):
    model = tiny.clip()
    search = fixed(model, found, tiny.split(), tiny.NAMES[0], layer="visual.proj", relative_step=0.05)
    assert len(search.trace) == 1
    assert search.chosen == 0
    edit = edit_of(search, model, found)
    delta = edit.deltas["visual.proj"]
    assert (delta.norm() / model.weights["visual.proj"].norm()).item() == pytest.approx(0.05, rel=1e-4)
    assert edit.moves[0].relative_norm == pytest.approx(0.05, rel=1e-4)

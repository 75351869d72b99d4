from dataclasses import replace

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.gradients.mean import Recipe, gradients
from muwa.layer_search.grid import fixed, grid
from muwa.layer_search.steps import edit_of

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


def test_fixed_takes_one_kind_of_step_and_a_known_layer(found):
    for steps in ({}, {"step": 1.0, "relative_step": 0.1}):
        with pytest.raises(ValueError, match="give exactly one of step"):
            fixed(tiny.clip(), found, tiny.split(), tiny.NAMES[0], layer="visual.proj", **steps)
    with pytest.raises(ValueError, match="'text_projectoin' is not one of .* Nearest: text_projection"):
        fixed(tiny.clip(), found, tiny.split(), tiny.NAMES[0], layer="text_projectoin", step=1.0)


def test_fixed_by_lambda_moves_the_layer_by_lambda_times_its_gradient(found):
    model = tiny.clip()
    edit = edit_of(fixed(model, found, tiny.split(), tiny.NAMES[0], layer="text_projection", step=2.5), model, found)
    torch.testing.assert_close(edit.deltas["text_projection"], 2.5 * found.forget["text_projection"])
    assert edit.moves[0].step == 2.5


def test_a_third_of_a_fused_tensor_moves_alone_and_is_measured_against_itself(found):
    model, name = tiny.clip(), "visual.transformer.resblocks.1.attn.in_proj_weight"
    search = fixed(model, found, tiny.split(), tiny.NAMES[0], layer=f"{name}[v]", granularity="qkv", relative_step=0.2)
    delta, weight = edit_of(search, model, found).deltas[name], model.weights[name]
    assert not delta[:64].any()
    assert (delta[64:].norm() / weight[64:].norm()).item() == pytest.approx(0.2, rel=1e-4)
    assert search.trace[0].relative_norm == pytest.approx(0.2, rel=1e-4)


def test_the_log_is_told_the_scores_first_and_then_every_row(found):
    told = []
    search = try_grid(
        found, layers=["visual.proj"], relative_steps=[0.1, 0.2], log=lambda event, row: told.append((event, row))
    )
    assert [event for event, _ in told] == ["scores", "evaluation", "evaluation"]
    assert told[0][1] == {"concept": tiny.NAMES[0], "scores": search.scores, "front": search.front}
    assert [row["step"] for _, row in told[1:]] == [row.step for row in search.trace]


def test_the_model_is_left_as_it_was(found):
    model = tiny.clip()
    grid(model, found, tiny.split(), tiny.NAMES[0], layers=["visual.proj", "text_projection"], relative_steps=[1.0])
    base = tiny.clip().weights
    assert all(torch.equal(weight, base[name]) for name, weight in model.weights.items())


def test_a_layer_without_a_forget_gradient_is_refused(found):
    flat = replace(found, forget={**found.forget, "visual.proj": torch.zeros_like(found.forget["visual.proj"])})
    with pytest.raises(ValueError, match="visual.proj: its forget gradient is zero"):
        try_grid(flat, layers=["visual.proj"], relative_steps=[0.1])

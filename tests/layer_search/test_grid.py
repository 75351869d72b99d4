from dataclasses import replace

import pytest
import tiny
import torch
from layer_search.examples import whitened_gradients
from records import part

from muwa.gradients.base import Recipe
from muwa.gradients.mean import mean_gradients
from muwa.layer_search.steps import edit_of
from muwa.run import Run

RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


@pytest.fixture(scope="module")
def gradients():
    return {"": mean_gradients(tiny.clip(), tiny.task(), tiny.NAMES[0], RECIPE, Run())}


def grid(gradients, *, run=None, probe=None, **settings):
    task = replace(tiny.task(), probe=probe or tiny.split())
    return part("layer_search=grid", **settings)(
        tiny.clip(), gradients, task, tiny.NAMES[0], run=run or Run()
    )


def fixed(gradients, **settings):
    search = part("layer_search=fixed", **settings)
    search.check(tiny.clip(), tiny.task())
    return search(tiny.clip(), gradients, tiny.task(), tiny.NAMES[0], run=Run())


def test_every_pair_of_layer_and_step_is_tried_in_order(gradients):
    layers, steps = ["visual.proj", "text_projection"], [0.01, 0.02, 0.04]
    search = grid(gradients, layers=layers, relative_steps=steps)
    tried = [(row.candidate.name, row.iteration) for row in search.trace]
    assert tried == [(name, i) for name in layers for i in (1, 2, 3)]
    assert [row.relative_norm for row in search.trace] == pytest.approx(steps * 2, rel=1e-4)
    assert [row.candidate.tower for row in search.trace] == ["vision"] * 3 + ["text"] * 3


def test_a_step_may_be_given_as_lambda(gradients):
    by_size = grid(gradients, layers=["visual.proj"], relative_steps=[0.03])
    by_lambda = grid(gradients, layers=["visual.proj"], relative_steps=None, steps=[by_size.trace[0].step])
    assert by_lambda.trace == by_size.trace


def test_without_layers_the_front_is_tried(gradients):
    search = grid(gradients, relative_steps=[0.1])
    assert [row.candidate.name for row in search.trace] == list(search.front)
    assert {row.candidate.tower for row in search.trace} == {"vision", "text"}
    only = grid(gradients, relative_steps=[0.1], towers=["text"])
    assert {row.candidate.tower for row in only.trace} == {"text"}


def test_with_whitened_gradients_the_rule_is_margin():
    found = {"": whitened_gradients(tiny.clip())}
    search = grid(found, layers=["visual.proj"], relative_steps=[0.1, 0.2], stranger=50.0)
    assert search.rule == "margin"
    assert all(row.kept_margin <= 0 for row in search.trace)
    assert search.trace[search.chosen].kept_margin == max(
        row.kept_margin for row in search.trace if row.feasible
    )
    never = grid(found, layers=["visual.proj"], relative_steps=[0.1, 0.2], stranger=-50.0)
    assert never.chosen is None
    assert "and images no nearer to their name than a stranger's" in never.why


def test_exactly_one_kind_of_step():
    for both in ({"steps": [1.0], "relative_steps": [0.1]}, {"steps": None, "relative_steps": None}):
        with pytest.raises(ValueError, match="give exactly one of steps .* and relative_steps"):
            part("layer_search=grid", layers=["visual.proj"], **both).check(tiny.clip(), tiny.task())


def test_an_unknown_layer_is_answered_with_the_nearest():
    message = r"layer_search.layer: 'visual.prj' is not one of the .* Nearest: visual.proj"
    with pytest.raises(ValueError, match=message):
        part("layer_search=grid", layers=["visual.prj"]).check(tiny.clip(), tiny.task())


def test_constrained_refuses_what_does_not_forget_and_paper_takes_it(gradients):
    known = tiny.pictures(list(range(8)))  # a random model puts some of eight in its first five
    probe = replace(tiny.split(), forget=known)
    for rule, chosen in (("constrained", None), ("paper", 0)):
        search = grid(gradients, probe=probe, layers=["visual.proj"], relative_steps=[1e-6], rule=rule)
        assert search.before.metrics["forget_top5"] > 0
        assert search.chosen == chosen
        assert not search.trace[0].feasible


def test_fixed_is_a_grid_of_one_and_its_edit_is_that_step(gradients):
    model = tiny.clip()
    search = fixed(gradients, layer="visual.proj", relative_step=0.05)
    assert len(search.trace) == 1
    assert search.chosen == 0
    edit = edit_of(search, model, gradients)
    delta = edit.deltas["visual.proj"]
    assert (delta.norm() / model.weights["visual.proj"].norm()).item() == pytest.approx(0.05, rel=1e-4)
    assert edit.moves[0].relative_norm == pytest.approx(0.05, rel=1e-4)
    assert search.trace == grid(gradients, layers=["visual.proj"], relative_steps=[0.05]).trace


def test_fixed_takes_one_kind_of_step_and_a_known_layer(gradients):
    for steps in ({}, {"step": 1.0, "relative_step": 0.1}):
        with pytest.raises(ValueError, match="give exactly one of step"):
            fixed(gradients, layer="visual.proj", **steps)
    with pytest.raises(ValueError, match="'text_projectoin' is not one of .* Nearest: text_projection"):
        fixed(gradients, layer="text_projectoin", step=1.0)
    with pytest.raises(ValueError, match="'visual.proj.head0' is not one of"):
        fixed(gradients, layer="visual.proj.head0", relative_step=0.1)


def test_fixed_by_lambda_moves_the_layer_by_lambda_times_its_gradient(gradients):
    edit = edit_of(fixed(gradients, layer="text_projection", step=2.5), tiny.clip(), gradients)
    torch.testing.assert_close(edit.deltas["text_projection"], 2.5 * gradients[""].forget["text_projection"])
    assert edit.moves[0].step == 2.5


def test_a_third_of_a_fused_tensor_moves_alone_and_is_measured_against_itself(gradients):
    model, name = tiny.clip(), "visual.transformer.resblocks.1.attn.in_proj_weight"
    search = fixed(gradients, layer=f"{name}[v]", granularity="qkv", relative_step=0.2)
    delta, weight = edit_of(search, model, gradients).deltas[name], model.weights[name]
    assert not delta[:64].any()
    assert (delta[64:].norm() / weight[64:].norm()).item() == pytest.approx(0.2, rel=1e-4)
    assert search.trace[0].relative_norm == pytest.approx(0.2, rel=1e-4)


def test_a_head_is_a_layer_at_its_granularity(gradients):
    layer = "visual.transformer.resblocks.0.attn.head1"
    search = fixed(gradients, layer=layer, step=3.0, granularity="head")
    assert [row.candidate.name for row in search.trace] == [layer]


def test_the_log_has_the_scores_first_and_then_every_row(gradients):
    log = []
    run = Run(log=lambda event, fields: log.append((event, fields)))
    search = grid(gradients, layers=["visual.proj"], relative_steps=[0.1, 0.2], run=run)
    assert [event for event, _ in log] == ["scores", "evaluation", "evaluation"]
    assert log[0][1] == {"concept": tiny.NAMES[0], "scores": search.scores, "front": search.front}
    assert [fields for _, fields in log[1:]] == [
        {"concept": tiny.NAMES[0], **row.record()} for row in search.trace
    ]


def test_the_model_is_left_as_it_was(gradients):
    model = tiny.clip()
    search = part("layer_search=grid", layers=["visual.proj", "text_projection"], relative_steps=[1.0])
    search(model, gradients, tiny.task(), tiny.NAMES[0], run=Run())
    base = tiny.clip().weights
    assert all(torch.equal(weight, base[name]) for name, weight in model.weights.items())


def test_a_layer_without_a_forget_gradient_is_refused(gradients):
    forget = gradients[""].forget
    flat = replace(gradients[""], forget={**forget, "visual.proj": torch.zeros_like(forget["visual.proj"])})
    with pytest.raises(ValueError, match="visual.proj: its forget gradient is zero"):
        grid({"": flat}, layers=["visual.proj"], relative_steps=[0.1])

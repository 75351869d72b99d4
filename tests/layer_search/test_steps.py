"""A step along the forget gradient, worked by hand on tiny models, and the edit that a search chose."""

from dataclasses import replace

import pytest
import tiny
import tiny_sd
import torch
from layer_search.examples import OUT_PROJ, layer_of, pipeline, pipeline_gradients, random_gradients

from muwa.layer_search.steps import (
    add_edits,
    candidate_of,
    edit_layers,
    edit_of,
    ratio,
    relative_size,
    step_deltas,
)
from muwa.types.edit import Edit, Move
from muwa.types.gradients import Gradients
from muwa.types.search import LAMBDA, NOTHING_EDITED, RELATIVE, Candidate, Evaluation, Layer, Part, Search

BEFORE = Evaluation(NOTHING_EDITED, 0, 0.0, LAMBDA, 0.0, False, 1.0, 1.0, 0.0, 0.5, {})


def search_of(candidate: Candidate, step: float, unit: str) -> Search:
    """A search that chose its only step."""
    row = replace(BEFORE, candidate=candidate, iteration=1, step=step, step_unit=unit)
    return Search("Ada Fox", "constrained", "tensor", {}, (), BEFORE, (row,), 0, "")


def test_step_deltas_touch_the_edited_parts_only():
    model = tiny.clip()
    name = "visual.transformer.resblocks.0.attn.in_proj_weight"
    gradients = Gradients({n: torch.ones_like(w) for n, w in model.weights.items()}, {}, 1, 1, {})
    layer = Layer("q", "vision", 0.3, (Part(name, 0, 0, 32),), (Part(name, 0, 0, 32),))
    deltas = step_deltas(model, gradients, layer, 0.5)
    assert list(deltas) == [name]
    assert deltas[name][:32].unique().tolist() == [0.5]
    assert deltas[name][32:].unique().tolist() == [0.0]


def test_ratio_and_relative_size_by_hand():
    model = tiny.clip()
    weights = torch.zeros(32, 16)
    weights[0, :2] = torch.tensor([3.0, 4.0])  # |theta| = 5
    model = model.with_weights({"visual.proj": weights})
    gradients = Gradients({"visual.proj": torch.full((32, 16), 0.5)}, {}, 1, 1, {})  # |g| = 0.5 sqrt(512)
    layer = layer_of(model, "visual.proj")
    assert ratio(model, gradients, layer) == pytest.approx(5 / (0.5 * 512**0.5))
    assert relative_size(model, layer, {"visual.proj": torch.ones(32, 16)}) == pytest.approx(512**0.5 / 5)


def test_a_layer_without_a_gradient_has_no_step():
    clip, gradients = pipeline().clip, pipeline_gradients()["text_encoder"]
    none = replace(gradients, forget={**gradients.forget, OUT_PROJ: torch.zeros(128, 128)})
    with pytest.raises(
        ValueError, match=f"{OUT_PROJ}: its forget gradient is zero, no step along it can forget"
    ):
        ratio(clip, none, layer_of(clip, OUT_PROJ))


def test_a_relative_step_moves_the_layer_by_that_part_of_its_norm():
    layers = {"text_encoder": layer_of(pipeline().clip, OUT_PROJ)}
    edit = edit_layers(pipeline(), pipeline_gradients(), layers, 0.25, unit=RELATIVE, concept="Ada Fox")
    weight, gradient = (
        pipeline().clip.weights[OUT_PROJ],
        pipeline_gradients()["text_encoder"].forget[OUT_PROJ],
    )
    assert set(edit.deltas) == {OUT_PROJ}
    step = (0.25 * weight.norm() / gradient.norm()).item()
    torch.testing.assert_close(edit.deltas[OUT_PROJ], step * gradient)
    assert (edit.moves[0].concept, edit.moves[0].tower, edit.moves[0].layer) == ("Ada Fox", "text", OUT_PROJ)
    assert edit.moves[0].step == pytest.approx(step, rel=1e-5)
    assert edit.moves[0].relative_norm == pytest.approx(0.25, rel=1e-5)


def test_a_lambda_is_the_factor_of_the_gradient():
    model, gradients = tiny.clip(), random_gradients(tiny.clip())
    layers = {"": layer_of(model, "text_projection")}
    edit = edit_layers(model, {"": gradients}, layers, 2.5, unit=LAMBDA, concept="x")
    assert torch.equal(edit.deltas["text_projection"], 2.5 * gradients.forget["text_projection"])
    assert edit.moves[0].step == 2.5


def test_only_a_step_along_a_gradient_has_an_edit():
    with pytest.raises(ValueError, match="step_unit: got 'learning rate', want 'lambda' or"):
        edit_layers(tiny.clip(), {}, {}, 1.0, unit="learning rate", concept="x")


def test_layers_of_a_second_encoder_are_named_after_it():
    model = tiny_sd.xl()
    gradients = {encoder: random_gradients(clip) for encoder, clip in model.clips.items()}
    layers = {encoder: layer_of(clip, OUT_PROJ) for encoder, clip in model.clips.items()}
    candidate = candidate_of(layers)
    assert dict(candidate.layers) == {"text_encoder": OUT_PROJ, "text_encoder_2": OUT_PROJ}
    assert candidate.name == f"{OUT_PROJ} + text_encoder_2/{OUT_PROJ}"
    edit = edit_of(search_of(candidate, 0.5, RELATIVE), model, gradients)
    assert {name: tuple(delta.shape) for name, delta in edit.deltas.items()} == {
        OUT_PROJ: (128, 128), f"text_encoder_2/{OUT_PROJ}": (32, 32),
    }  # fmt: skip
    assert [move.layer for move in edit.moves] == list(candidate.names)
    assert [move.relative_norm for move in edit.moves] == pytest.approx([0.5, 0.5], rel=1e-5)
    want = step_deltas(
        model.clips["text_encoder_2"],
        gradients["text_encoder_2"],
        layers["text_encoder_2"],
        edit.moves[1].step,
    )
    assert torch.equal(edit.deltas[f"text_encoder_2/{OUT_PROJ}"], want[OUT_PROJ])


def test_the_edit_is_that_of_the_chosen_step():
    layer = layer_of(pipeline().clip, OUT_PROJ)
    search = search_of(candidate_of({"text_encoder": layer}), 0.25, RELATIVE)
    edit = edit_of(search, pipeline(), pipeline_gradients())
    want = edit_layers(
        pipeline(), pipeline_gradients(), {"text_encoder": layer}, 0.25, unit=RELATIVE, concept="Ada Fox"
    )
    assert torch.equal(edit.deltas[OUT_PROJ], want.deltas[OUT_PROJ])
    assert edit.moves == want.moves
    assert edit.searches == (search,)


def test_no_choice_is_an_edit_that_changes_nothing():
    search = replace(search_of(NOTHING_EDITED, 0.0, LAMBDA), chosen=None)
    assert edit_of(search, tiny.clip(), {}) == Edit({}, (), (search,))


def test_edits_add_and_shared_tensors_sum():
    one = Edit({"a": torch.ones(2), "b": torch.ones(1)}, (Move("x", "vision", "a", 1, 1),))
    two = Edit({"b": torch.ones(1)}, (Move("y", "text", "b", 1, 1),))
    both = add_edits([one, two])
    assert {n: d.tolist() for n, d in both.deltas.items()} == {"a": [1, 1], "b": [2]}
    assert [move.concept for move in both.moves] == ["x", "y"]
    assert one.deltas["b"].tolist() == [1]

"""What a search by outputs moves: relative steps, and the edit of the chosen row."""

import dataclasses

import pytest
import torch
from layer_search.evaluators.test_images import LAYER, gradients, layer, model

from muwa.layer_search.candidates import edit_of, moved, ratio
from muwa.types.edit import Edit
from muwa.types.search import Evaluation, Search


def test_a_relative_step_moves_the_layer_by_that_part_of_its_norm() -> None:
    edit = moved(model(), {"text_encoder": gradients()}, {"text_encoder": layer()}, 0.25)
    weight, gradient = model().clip.weights[LAYER], gradients().forget[LAYER]
    assert set(edit.deltas) == {LAYER}
    assert edit.deltas[LAYER].norm().item() == pytest.approx(0.25 * weight.norm().item(), rel=1e-5)
    assert torch.cosine_similarity(edit.deltas[LAYER].flatten(), gradient.flatten(), dim=0).item() == pytest.approx(
        1, abs=1e-5
    )
    assert ratio(model().clip, gradients(), layer()) == pytest.approx(
        (weight.norm() / gradient.norm()).item(), rel=1e-5
    )


def test_a_layer_without_a_gradient_has_no_step() -> None:
    none = dataclasses.replace(gradients(), forget={**gradients().forget, LAYER: torch.zeros(128, 128)})
    with pytest.raises(ValueError, match="gradient is zero"):
        ratio(model().clip, none, layer())


def test_the_edit_is_that_of_the_chosen_row() -> None:
    row = Evaluation(LAYER, "text", 1, 0.25, 0.25, 0, 0, 0, 1, 1, True)
    search = Search("Ada Fox", "constrained", "tensor", {}, (LAYER,), row, (row,), 0, "")
    edit = edit_of(search, model(), {"text_encoder": gradients()})
    assert torch.equal(
        edit.deltas[LAYER], moved(model(), {"text_encoder": gradients()}, {"text_encoder": layer()}, 0.25).deltas[LAYER]
    )
    move = edit.moves[0]
    assert (move.layer, move.tower) == (LAYER, "text")
    assert move.step == pytest.approx(0.25 * ratio(model().clip, gradients(), layer()))
    assert move.relative_norm == pytest.approx(0.25, rel=1e-5)
    none = edit_of(dataclasses.replace(search, chosen=None), model(), {"text_encoder": gradients()})
    assert none == Edit({}, (), (dataclasses.replace(search, chosen=None),))

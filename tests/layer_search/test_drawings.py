"""One step judged by what is drawn with it."""

import dataclasses
import functools

import pytest
import tiny
import tiny_sd
import torch

from muwa.eval.accuracy import wilson
from muwa.layer_search.drawings import Candidate, Drawings, edit_of, moved, probes, ratio
from muwa.models.diffusion import Diffusion
from muwa.studio import Studio, prompts_of
from muwa.types import Edit, Evaluation, Gradients, Search, Task

LAYER = "transformer.resblocks.1.attn.out_proj.weight"


@functools.cache
def model() -> Diffusion:
    return tiny_sd.diffusion()


@functools.cache
def gradients() -> Gradients:
    """Random ones, of the size of the weights."""
    generator = torch.Generator().manual_seed(3)
    made = {name: torch.randn(w.shape, generator=generator) for name, w in model().clip.weights.items()}
    return Gradients(made, {name: g.flip(0) for name, g in made.items()}, 4, 4, {"made": "here"})


def layer(name: str = LAYER):
    return next(one for one in model().clip.layers("tensor") if one.name == name)


def remembering(task: Task, limits: dict[str, float]) -> tiny_sd.Memory:
    """Knows everything as the unedited model draws it, with few steps and with all."""
    known: dict[str, list[torch.Tensor]] = {}
    for fresh, steps in ((False, 1), (True, 2)):
        asked = probes(task, 4, 6, 3, fresh)
        for ask, picture in zip(asked, Studio(model().sampled(steps=steps)).draw(prompts_of(asked)), strict=True):
            known.setdefault(ask.concept, []).append(picture)
    return tiny_sd.Memory({name: torch.stack(pictures) for name, pictures in known.items()}, limits)


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


def test_probes_of_each_role_and_fresh_seeds() -> None:
    asked = probes(tiny.task(), 4, 6, 3, fresh=False)
    assert [ask.role for ask in asked] == ["forget"] * 4 + ["retain"] * 6 + ["cross"] * 3
    assert len({ask.concept for ask in asked if ask.role == "retain"}) == 6
    assert {ask.seed for ask in asked} <= set(range(4))
    assert {ask.seed for ask in probes(tiny.task(), 4, 6, 3, fresh=True)} <= set(range(4, 8))


def test_rates_are_those_counted_by_hand() -> None:
    task = tiny.task()
    judge = remembering(task, {"Ada Fox": 0.0})
    drawings = Drawings(model(), {"text_encoder": gradients()}, task, judge, None, 4, 9, 0.5, False)
    before = drawings.before(1)
    assert (before.forget_top1, before.retain_top1, before.utility_top1, before.feasible) == (1, 1, 1, False)
    assert drawings.counts == (6, 3)
    row, lost = drawings.judge(Candidate({"text_encoder": layer()}, 0.1), 0.8, 1)
    edited = model().edited(moved(model(), {"text_encoder": gradients()}, {"text_encoder": layer()}, 0.8))
    asked = probes(task, 4, 6, 3, fresh=False)
    drawn = Studio(edited.sampled(steps=1)).draw(prompts_of(asked))
    hits = {role: [] for role in ("forget", "retain", "cross")}
    for ask, logits in zip(asked, judge.logits(drawn, "class"), strict=True):
        hits[ask.role].append(judge.labels["class"][logits.argmax()] == ask.concept)
    assert row.forget_top1 == sum(hits["forget"]) / 4 == 0
    assert row.retain_top1 == sum(hits["retain"]) / 6
    assert row.utility_top1 == sum(hits["cross"]) / 3
    assert row.feasible == (wilson(0, 4)[1] <= 0.5)
    kept = hits["retain"] + hits["cross"]
    assert lost == wilson(kept.count(False), 9)[1]
    assert row.relative_norm == pytest.approx(0.8, rel=1e-5)
    assert -1 <= row.forget_cosine <= 1


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

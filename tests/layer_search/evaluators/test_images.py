"""One step judged by what is drawn with it."""

import functools

import pytest
import tiny
import tiny_sd
import torch

from muwa.eval.clip.accuracy import wilson
from muwa.layer_search.candidates import Candidate, moved
from muwa.layer_search.evaluators.images import ImageEvaluator, probes
from muwa.models.diffusion.image_generation import ImageGenerator, prompts_of
from muwa.models.diffusion.model import Diffusion
from muwa.types.data import Task
from muwa.types.gradients import Gradients

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
        for ask, picture in zip(asked, ImageGenerator(model().sampled(steps=steps)).draw(prompts_of(asked)), strict=True):
            known.setdefault(ask.concept, []).append(picture)
    return tiny_sd.Memory({name: torch.stack(pictures) for name, pictures in known.items()}, limits)


def test_probes_of_each_role_and_fresh_seeds() -> None:
    asked = probes(tiny.task(), 4, 6, 3, fresh=False)
    assert [ask.role for ask in asked] == ["forget"] * 4 + ["retain"] * 6 + ["cross"] * 3
    assert len({ask.concept for ask in asked if ask.role == "retain"}) == 6
    assert {ask.seed for ask in asked} <= set(range(4))
    assert {ask.seed for ask in probes(tiny.task(), 4, 6, 3, fresh=True)} <= set(range(4, 8))


def test_rates_are_those_counted_by_hand() -> None:
    task = tiny.task()
    judge = remembering(task, {"Ada Fox": 0.0})
    drawings = ImageEvaluator(model(), {"text_encoder": gradients()}, task, judge, None, 4, 9, 1, 0.5, False)
    before = drawings.before()
    assert (before.forget_top1, before.retain_top1, before.utility_top1, before.feasible) == (1, 1, 1, False)
    assert drawings.counts == (6, 3)
    row, lost = drawings.judge(Candidate({"text_encoder": layer()}, 0.1), 0.8)
    edited = model().edited(moved(model(), {"text_encoder": gradients()}, {"text_encoder": layer()}, 0.8))
    asked = probes(task, 4, 6, 3, fresh=False)
    drawn = ImageGenerator(edited.sampled(steps=1)).draw(prompts_of(asked))
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

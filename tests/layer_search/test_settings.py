"""What every search refuses before anything is computed: the settings that several searches have."""

from dataclasses import replace

import pytest
import tiny
import tiny_vlm
from layer_search.examples import pipeline
from records import part

from muwa.layer_search.choice import Acceptance

ON_A_CLIP = (
    {"search": "pareto_bisect"},
    {"search": "grid"},
    {"search": "fixed", "layer": "visual.proj", "step": 1.0},
)


def check(search: str, model, **settings):
    part(f"layer_search={search}", **settings).check(model, tiny.task())


@pytest.mark.parametrize("settings", ON_A_CLIP)
@pytest.mark.parametrize(("changed", "message"), [
    ({"rule": "best"}, "layer_search.rule: got 'best', want one of constrained, margin, paper, deepest"),
    ({"criterion": "top3"}, "layer_search.criterion: got 'top3'"),
    ({"target": 1.5}, "layer_search.target: got 1.5, want a forget accuracy"),
    ({"tolerance": -1}, "layer_search.tolerance: got -1, want 0 or more standard errors"),
    ({"stranger": float("nan")}, "layer_search.stranger: got nan, want a number of deviations"),
    ({"towers": ["visual"]}, r"layer_search.towers: got \['visual'\], want some of vision, text"),
    ({"granularity": "block"}, "layer_search.granularity: got 'block', want one of tensor, qkv, mlp, head"),
])  # fmt: skip
def test_searches_of_a_clip_refuse_a_wrong_setting(settings, changed, message):
    check(model=tiny.clip(), **settings)
    with pytest.raises(ValueError, match=message):
        check(model=tiny.clip(), **{**settings, **changed})


@pytest.mark.parametrize("settings", ON_A_CLIP)
def test_searches_of_a_clip_refuse_other_models(settings):
    name = settings["search"]
    with pytest.raises(
        ValueError, match=rf"layer_search={name}: got a text-to-image model .* take layer_search=generation"
    ):
        check(model=pipeline(), **settings)
    with pytest.raises(
        ValueError, match=rf"layer_search={name}: got a vision-language .* take layer_search=answering"
    ):
        check(model=tiny_vlm.vlm(), **settings)


@pytest.mark.parametrize("search", ["generation", "answering"])
@pytest.mark.parametrize(("changed", "message"), [
    ({"start": "here"}, "layer_search.start: got 'here', want one of clip, ratio, gain"),
    ({"candidates": 0}, "layer_search.candidates: got 0, want at least 1, or null for all layers"),
    ({"confirmations": 0}, "layer_search.confirmations: got 0, want at least 1"),
    ({"lengthen": 1.0}, "layer_search.lengthen: got 1.0, want a factor above 1, or null"),
    ({"forget_at_most": 0.0}, r"layer_search.forget_at_most: got 0.0, want a rate in \(0, 1\)"),
    ({"lost_at_most": 1.5}, "layer_search.lost_at_most: got 1.5"),
    ({"rule": "best"}, "layer_search.rule: got 'best'"),
    ({"rule": "margin"}, "layer_search.rule: got 'margin', want constrained, paper or deepest: outputs have no margins"),
    ({"tolerance": -1}, "layer_search.tolerance: got -1"),
    ({"first_step": -0.1}, "layer_search.first_step: got -0.1, want more than 0"),
    ({"max_evals": 0}, "layer_search.max_evals: got 0, want more than 0"),
    ({"granularity": "block"}, "layer_search.granularity: got 'block'"),
])  # fmt: skip
def test_searches_by_outputs_refuse_a_wrong_setting(search, changed, message):
    model = pipeline() if search == "generation" else tiny_vlm.vlm()
    with pytest.raises(ValueError, match=message):
        check(search, model, **changed)


@pytest.mark.parametrize("search", ["pareto_bisect", "grid"])
def test_without_a_rule_the_gradients_decide(search):
    settings = part(
        f"layer_search={search}", rule=None, tolerance=2.0, stranger=3.0, target=0.25, criterion="top1"
    )
    assert settings.acceptance(False) == Acceptance("constrained", "top1", 0.25, 2.0, 3.0)
    assert settings.acceptance(True) == Acceptance("margin", "top1", 0.25, 2.0, 3.0)
    for rule in ("constrained", "margin", "paper", "deepest"):
        assert {replace(settings, rule=rule).acceptance(whitened).rule for whitened in (False, True)} == {
            rule
        }


def test_searches_by_outputs_refuse_other_models():
    with pytest.raises(
        ValueError, match=r"layer_search=generation: got a CLIP .* take layer_search=pareto_bisect"
    ):
        check("generation", tiny.clip())
    with pytest.raises(
        ValueError, match=r"layer_search=answering: got a text-to-image .* take layer_search=generation"
    ):
        check("answering", pipeline())


def test_candidates_may_be_all_but_not_none_of_them():
    search = part("layer_search=answering", candidates=None, forget_at_most=0.5)
    assert search.check(tiny_vlm.vlm(), tiny.task()) is None
    with pytest.raises(ValueError, match="layer_search.candidates: got 0, want at least 1, or null for all"):
        replace(search, candidates=0).check(tiny_vlm.vlm(), tiny.task())


def test_a_search_is_ready_as_it_is():
    search = part("layer_search=grid")
    assert search.ready(tiny.clip(), tiny.task()) is search


@pytest.mark.parametrize(("search", "settings", "needed"), [
    ("pareto_bisect", {}, False),
    ("pareto_bisect", {"rule": "margin"}, False),
    ("pareto_bisect", {"rule": "constrained"}, True),
    ("pareto_bisect", {"candidates": None}, True),
    ("fixed", {"layer": "visual.proj", "step": 1.0}, False),
    ("grid", {}, True),
    ("grid", {"rule": "margin"}, True),
    ("grid", {"layers": ["visual.proj"]}, False),
    ("generation", {}, False),
    ("generation", {"candidates": None}, True),
    ("generation", {"start": "clip"}, True),
    ("answering", {"start": "gain"}, False),
    ("answering", {"start": "ratio"}, True),
])  # fmt: skip
def test_only_along_a_whitened_gradient_can_a_search_do_without_the_retain_gradient(search, settings, needed):
    made = part(f"layer_search={search}", **settings)
    assert made.needs_retain_gradient(whitened=True) is needed
    assert made.needs_retain_gradient(whitened=False) is True

from functools import partial

import pytest
import tiny

from muwa.layer_search.bisection import pareto_bisect
from muwa.layer_search.checks import check_search
from muwa.layer_search.grid import fixed, grid


@pytest.mark.parametrize(("search", "message"), [
    (partial(pareto_bisect, rule="best"), "layer_search.rule: got 'best', want one of constrained, paper, deepest"),
    (partial(pareto_bisect, first_step=-0.1), "layer_search.first_step: got -0.1, want more than 0"),
    (partial(pareto_bisect, towers=["visual"]), r"layer_search.towers: got \['visual'\], want some of vision, text"),
    (partial(pareto_bisect, towers=[]), r"layer_search.towers: got \[\]"),
    (partial(pareto_bisect, granularity="block"), "layer_search.granularity: got 'block', want one of tensor, qkv, mlp, head"),
    (partial(grid, steps=[1.0]), "give exactly one of steps"),
    (partial(grid, layers=["visual.proj", "visual.prj"]), "layer_search.layer: 'visual.prj' is not one of the .* Nearest: visual.proj"),
    (partial(pareto_bisect, tolerance=-1), "layer_search.tolerance: got -1, want 0 or more standard errors"),
    (partial(fixed, layer="visual.proj"), "give exactly one of step .lambda. and relative_step"),
    (partial(fixed, layer="visual.proj.head0", relative_step=0.1), "'visual.proj.head0' is not one of"),
    (partial(fixed, layer="visual.proj", relative_step=0.1, target=-1), "layer_search.target: got -1, want a forget accuracy"),
])  # fmt: skip
def test_a_wrong_setting_is_named_without_gradients(search, message):
    with pytest.raises(ValueError, match=message):
        check_search(tiny.clip(), search)


@pytest.mark.parametrize("search", [
    pareto_bisect, grid, partial(fixed, layer="visual.proj", relative_step=0.1),
    partial(fixed, layer="visual.transformer.resblocks.0.attn.head1", step=3.0, granularity="head"),
])  # fmt: skip
def test_right_settings_pass(search):
    assert check_search(tiny.clip(), search) is None

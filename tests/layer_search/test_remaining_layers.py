from functools import partial

import pytest
import tiny
import torch

from muwa.cache.store import Store
from muwa.gradients.mean import Recipe, gradients
from muwa.layer_search.remaining_layers import RemainingLayers
from muwa.layer_search.steps import step_deltas
from muwa.models.clip.embeddings import prepared
from muwa.types.edit import Edit


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    model, task = tiny.clip(), tiny.task()
    found = gradients(
        model, task, tiny.NAMES[0], Recipe("cosine", "contrastive", 4, 0), store=Store(tmp_path_factory.mktemp("c"))
    )
    pixels = prepared(model.prepare, tiny.pictures([0, 1, 2, 3, 4]))
    return (
        model,
        found,
        {"vision": list(pixels.split(2)), "text": list(tiny.tokenize(["a", "Ada Fox", "abc"]).split(2))},
    )


def whole(model, tower, batches):
    """All batches by the edited model itself, from the inputs on."""
    scale = model.prepare.scale if tower == "vision" else lambda tokens: tokens
    return torch.cat([model.encode(tower, scale(batch)) for batch in batches])


@pytest.mark.parametrize("granularity", ["tensor", "qkv", "mlp", "head"])
@pytest.mark.parametrize("keep", [1 << 30, 0])
def test_every_layer_gives_what_the_whole_tower_gives(world, granularity, keep):
    model, found, inputs = world
    for tower in ("vision", "text"):
        layers = [layer for layer in model.layers(granularity) if layer.tower == tower]
        suffix = RemainingLayers(model, tower, inputs[tower], layers, keep)
        torch.testing.assert_close(suffix.base, whole(model, tower, inputs[tower]))
        for layer in (*layers, *layers[:3]):  # in depth order, then from the beginning again
            deltas = partial(step_deltas, model, found, layer)
            at = suffix(layer, deltas, 1.0)
            for step in (0.0, 0.3, 5.0):
                want = whole(model.edited(Edit(deltas(step), ())), tower, inputs[tower])
                torch.testing.assert_close(at(step), want, rtol=1e-4, atol=2e-6, msg=f"{layer.name} {step}")


def test_states_behind_the_searched_layer_are_kept_and_those_before_it_let_go(world):
    model, found, inputs = world
    layers = [layer for layer in model.layers("tensor") if "mlp.c_fc" in layer.name and layer.tower == "text"]
    suffix = RemainingLayers(model, "text", inputs["text"], layers)
    assert sorted(suffix._kept) == [2, 4]
    suffix(layers[1], partial(step_deltas, model, found, layers[1]), 1.0)
    assert sorted(suffix._kept) == [4]


def test_only_what_follows_a_layer_runs_for_a_step(world):
    """Counted: a step on the last block's MLP calls no module of the first block, and an affine one not its own either."""
    model, found, inputs = world
    blocks = model._towers.model.visual.transformer.resblocks
    for name, expected in (("visual.transformer.resblocks.1.mlp.c_fc.weight", [0, 1]),
                           ("visual.transformer.resblocks.1.mlp.c_proj.weight", [0, 0]),
                           ("visual.transformer.resblocks.0.mlp.c_fc.weight", [1, 1])):  # fmt: skip
        layer = next(layer for layer in model.layers("tensor") if layer.name == name)
        at = RemainingLayers(model, "vision", inputs["vision"], [layer])(layer, partial(step_deltas, model, found, layer), 1.0)
        calls = [0, 0]
        hooks = [block.mlp.register_forward_hook(partial(count, calls, i)) for i, block in enumerate(blocks)]
        at(1.0)
        for hook in hooks:
            hook.remove()
        assert [n // len(inputs["vision"]) for n in calls] == expected, name


def count(calls, i, *call):
    calls[i] += 1

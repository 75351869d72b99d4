from functools import partial

import pytest
import tiny
import torch

from muwa.gradients.base import Recipe
from muwa.gradients.mean import mean_gradients
from muwa.layer_search.remaining_layers import RemainingLayers
from muwa.layer_search.steps import step_deltas
from muwa.models.clip.embeddings import prepared
from muwa.run import Run
from muwa.types.edit import Edit


@pytest.fixture(scope="module")
def made():
    """(model, gradients, tower -> batches of its inputs)."""
    model, recipe = tiny.clip(), Recipe("cosine", "contrastive", 4, 0, "fp32")
    gradients = mean_gradients(model, tiny.task(), tiny.NAMES[0], recipe, Run())
    pixels = prepared(model.prepare, tiny.pictures([0, 1, 2, 3, 4]))
    tokens = tiny.tokenize(["a", "Ada Fox", "abc"])
    return model, gradients, {"vision": list(pixels.split(2)), "text": list(tokens.split(2))}


def whole(model, tower, batches):
    """All batches by the edited model itself, from the inputs on."""
    scale = model.prepare.scale if tower == "vision" else lambda tokens: tokens
    return torch.cat([model.encode(tower, scale(batch)) for batch in batches])


@pytest.mark.parametrize("granularity", ["tensor", "qkv", "mlp", "head"])
@pytest.mark.parametrize("max_bytes", [1 << 30, 0])
def test_every_layer_gives_what_the_whole_tower_gives(made, granularity, max_bytes):
    model, gradients, inputs = made
    for tower in ("vision", "text"):
        layers = [layer for layer in model.layers(granularity) if layer.tower == tower]
        remaining = RemainingLayers(model, tower, inputs[tower], layers, max_bytes)
        torch.testing.assert_close(remaining.base, whole(model, tower, inputs[tower]))
        for layer in (*layers, *layers[:3]):  # in depth order, then from the beginning again
            deltas = partial(step_deltas, model, gradients, layer)
            at = remaining(layer, deltas, 1.0)
            for step in (0.0, 0.3, 5.0):
                want = whole(model.edited(Edit(deltas(step), ())), tower, inputs[tower])
                torch.testing.assert_close(at(step), want, rtol=1e-4, atol=2e-6, msg=f"{layer.name} {step}")


def test_activations_at_the_searched_layer_and_after_it_are_stored_and_those_before_it_dropped(made):
    model, gradients, inputs = made
    layers = [layer for layer in model.layers("tensor") if "mlp.c_fc" in layer.name and layer.tower == "text"]
    remaining = RemainingLayers(model, "text", inputs["text"], layers)
    assert sorted(remaining._stored) == [2, 4]
    remaining(layers[1], partial(step_deltas, model, gradients, layers[1]), 1.0)
    assert sorted(remaining._stored) == [4]


def test_only_what_follows_a_layer_runs_for_a_step(made):
    """Counted: a step on the last block's MLP calls no module of the first block, and an affine one not its own either."""
    model, gradients, inputs = made
    blocks = model._towers.model.visual.transformer.resblocks
    for name, expected in (("visual.transformer.resblocks.1.mlp.c_fc.weight", [0, 1]),
                           ("visual.transformer.resblocks.1.mlp.c_proj.weight", [0, 0]),
                           ("visual.transformer.resblocks.0.mlp.c_fc.weight", [1, 1])):  # fmt: skip
        layer = next(layer for layer in model.layers("tensor") if layer.name == name)
        at = RemainingLayers(model, "vision", inputs["vision"], [layer])(
            layer, partial(step_deltas, model, gradients, layer), 1.0
        )
        calls = [0, 0]
        hooks = [block.mlp.register_forward_hook(partial(count, calls, i)) for i, block in enumerate(blocks)]
        at(1.0)
        for hook in hooks:
            hook.remove()
        assert [n // len(inputs["vision"]) for n in calls] == expected, name


def count(calls, i, *call):
    calls[i] += 1

"""The map from a tower to its CLIP, on a text encoder whose CLIP holds q, k and v in one weight."""

import functools

import tiny_sd
import torch

from muwa.gradients.towers import gradients_by_clip, moments_by_clip
from muwa.models.clip.layers import tower_of

FUSED = "transformer.resblocks.1.attn.in_proj_weight"


@functools.cache
def pipeline():
    return tiny_sd.diffusion()


@functools.cache
def block() -> str:
    """The prefix of the second block's names, which differs between versions of transformers."""
    ending = ".layer_norm1.bias"
    names = pipeline().weights("text_encoder")
    return next(n for n in names if n.endswith(f"encoder.layers.1{ending}")).removesuffix(ending)


def test_the_weights_of_the_tower_are_those_of_its_clip_and_zero_elsewhere():
    clip = pipeline().clip
    found = gradients_by_clip(clip, pipeline().weights("text_encoder"))
    assert list(found) == list(clip.weights)
    in_tower = [name for name in clip.weights if tower_of(name) == "text" and name != "logit_scale"]
    for name, tensor in found.items():
        expected = clip.weights[name]
        if name not in in_tower or name == "text_projection":  # Stable Diffusion's encoder has no projection
            expected = torch.zeros_like(expected)
        assert torch.equal(tensor, expected), name


def test_q_k_and_v_share_their_inputs_and_have_blocks_of_outputs():
    places = [f"{block()}.self_attn.{part}_proj.weight" for part in "qkv"]
    shared = torch.rand(128, 128)
    outputs = [torch.rand(128, 128) for _ in places]
    found = moments_by_clip(
        pipeline().clip,
        pipeline().weights("text_encoder"),
        dict.fromkeys(places, shared),
        dict(zip(places, outputs, strict=True)),
    )
    assert list(found["inputs"]) == list(found["outputs"]) == [FUSED]
    assert torch.equal(found["inputs"][FUSED], shared)
    expected = torch.zeros(384, 384)
    for i, moment in enumerate(outputs):
        expected[128 * i : 128 * (i + 1), 128 * i : 128 * (i + 1)] = moment
    assert torch.equal(found["outputs"][FUSED], expected)


def test_a_weight_with_a_part_missing_has_no_moment():
    inputs = {
        f"{block()}.self_attn.q_proj.weight": torch.eye(128),
        f"{block()}.mlp.fc2.weight": torch.eye(512),
    }
    found = moments_by_clip(pipeline().clip, pipeline().weights("text_encoder"), inputs, {})
    assert list(found["inputs"]) == ["transformer.resblocks.1.mlp.c_proj.weight"]
    assert found["outputs"] == {}

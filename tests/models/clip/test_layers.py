import open_clip
import pytest
import tiny
import torch
from transformers import CLIPConfig, CLIPModel

from muwa.models.clip.layers import as_matrix, depths, input_dim, is_candidate, layers, matrices, tower_of


def covered(found, weights):
    """How many layers score each weight: parameter name -> counts of its shape."""
    count = {name: torch.zeros_like(w) for name, w in weights.items()}
    for layer in found:
        for part in layer.scored:
            part.of(count).add_(1)
    return count


@pytest.mark.parametrize("granularity", ["tensor", "qkv", "mlp", "head"])
def test_every_candidate_weight_is_in_exactly_one_layer(granularity):
    model = tiny.clip()
    for name, count in covered(model.layers(granularity), model.weights).items():
        assert count.unique().tolist() == [1.0 if is_candidate(name, count) else 0.0], name


def test_which_parameters_are_candidates():
    names = {name: is_candidate(name, w) for name, w in tiny.clip().weights.items()}
    for name in (
        "logit_scale",
        "positional_embedding",
        "token_embedding.weight",
        "visual.class_embedding",
        "visual.positional_embedding",
        "visual.transformer.resblocks.0.attn.in_proj_bias",
        "ln_final.bias",
    ):
        assert not names[name], name
    for name in (
        "visual.proj",
        "text_projection",
        "visual.conv1.weight",
        "visual.ln_pre.weight",
        "transformer.resblocks.1.mlp.c_fc.weight",
    ):
        assert names[name], name


def test_towers():
    assert tower_of("visual.proj") == tower_of("vision_model.encoder.layers.0.mlp.fc1.weight") == "vision"
    assert tower_of("transformer.resblocks.0.attn.in_proj_weight") == tower_of("text_projection") == "text"


def test_depth_runs_from_input_to_output():
    blocks = [f"visual.transformer.resblocks.{i}.ln_1.weight" for i in (0, 3)]
    names = ["visual.conv1.weight", *blocks, "visual.proj"]
    assert list(depths(names).values()) == [0, 1 / 5, 4 / 5, 1]


def test_qkv_splits_the_fused_projection_in_its_thirds():
    model = tiny.clip()
    fused = "transformer.resblocks.1.attn.in_proj_weight"
    found = {layer.name: layer for layer in model.layers("qkv")}
    rows = [found[f"{fused}[{letter}]"].edited[0].of(model.weights) for letter in "qkv"]
    assert torch.equal(torch.cat(rows), model.weights[fused])


def test_a_head_is_its_rows_and_its_output_columns():
    model = tiny.clip()
    head = next(x for x in model.layers("head") if x.name == "visual.transformer.resblocks.0.attn.head1")
    shapes = [tuple(part.of(model.weights).shape) for part in head.edited]
    assert shapes == [(16, 32), (16, 32), (16, 32), (32, 16)]
    q, out = head.edited[0], head.edited[3]
    assert (q.start, out.start, out.dim) == (16, 16, 1)


def test_the_rows_and_columns_of_a_head_belong_together():
    """Zeroing the value rows of a head equals zeroing its output columns: both silence it."""
    model = tiny.clip()
    head = next(x for x in model.layers("head") if x.name == "transformer.resblocks.0.attn.head0")
    name_in, name_out = head.edited[0].name, head.edited[3].name
    silent = {name: w.clone() for name, w in model.weights.items() if name in (name_in, name_out)}
    head.edited[2].of(silent).zero_()  # value rows
    bias = {name_in.replace("weight", "bias"): torch.zeros(96)}
    tokens = tiny.tokenize(["ada fox"])
    by_value = model.with_weights({name_in: silent[name_in], **bias}).encode("text", tokens)
    only_out = {name_out: model.weights[name_out].clone()}
    head.edited[3].of(only_out).zero_()
    by_output = model.with_weights({**only_out, **bias}).encode("text", tokens)
    torch.testing.assert_close(by_value, by_output)
    assert not torch.allclose(by_value, model.with_weights(bias).encode("text", tokens))


def hf_weights():
    block = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**block, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=block, vision_config=vision, projection_dim=16)
    return {name: p.detach() for name, p in CLIPModel(config).named_parameters()}


def test_hugging_face_layers_score_one_matrix_and_edit_all_of_the_sub_layer():
    found = {layer.name: layer for layer in layers(hf_weights(), {}, "tensor")}
    base = "vision_model.encoder.layers.1"
    q = found[f"{base}.self_attn.q_proj.weight"]
    assert [part.name for part in q.scored] == [q.name]
    assert [part.name for part in q.edited] == [f"{base}.self_attn.{x}_proj.weight" for x in "qkv"]
    fc2 = found[f"{base}.mlp.fc2.weight"]
    assert [part.name for part in fc2.edited] == [f"{base}.mlp.fc1.weight", f"{base}.mlp.fc2.weight"]
    assert len(found[f"{base}.self_attn.out_proj.weight"].edited) == 1
    assert not any("norm" in name for name in found)


def test_hugging_face_sub_layers_and_heads():
    weights = hf_weights()
    found = {layer.name: layer for layer in layers(weights, {}, "mlp")}
    assert len(found["text_model.encoder.layers.0.self_attn.qkv"].scored) == 3
    assert len(found["text_model.encoder.layers.0.mlp"].scored) == 2
    heads = layers(weights, {"text_model.encoder.layers.0.self_attn": 2}, "head")
    head = next(layer for layer in heads if layer.name == "text_model.encoder.layers.0.self_attn.head1")
    assert [tuple(p.of(weights).shape) for p in head.edited] == [(16, 32), (16, 32), (16, 32), (32, 16)]


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "EVA01-g-14"])
def test_timm_towers_are_understood(name):
    """The real architectures on the meta device, which needs no memory for weights."""
    with torch.device("meta"):
        model = open_clip.create_model(name, pretrained=None, pretrained_text=False, device="meta")
    weights = dict(model.named_parameters())
    found = layers(weights, {}, "qkv")
    vision = [layer for layer in found if layer.tower == "vision"]
    text = [layer for layer in found if layer.tower == "text"]
    assert len(vision) > 40
    assert len(text) > 40
    assert not any("pos_embed" in x.name or "cls_token" in x.name or "logit" in x.name for x in found)
    assert any(layer.name.endswith("attn.qkv.weight[v]") for layer in vision)
    assert max(layer.depth for layer in text) == 1


def test_a_projection_of_open_clip_has_its_inputs_first():
    weights = tiny.clip().weights
    shapes = {name: as_matrix(name, weights[name]).shape for name in matrices(weights)}
    assert shapes["visual.proj"] == (16, 32)
    assert shapes["text_projection"] == (16, 32)
    assert shapes["visual.transformer.resblocks.0.attn.in_proj_weight"] == (96, 32)
    assert shapes["visual.conv1.weight"] == (32, 3 * 16 * 16)
    assert (input_dim("visual.proj"), input_dim("visual_projection.weight")) == (0, 1)


def test_matrices_are_the_candidates_with_input_directions():
    weights = tiny.clip().weights
    got = matrices(weights)
    assert len(got) == 2 * 2 * 4 + 3  # two blocks a tower of four matrices; conv1 and the two projections
    assert not {"token_embedding.weight", "positional_embedding", "ln_final.weight", "logit_scale"} & set(got)
    assert got == [name for name in weights if name in got]


def test_a_matrix_is_a_view_of_the_weight():
    weight = torch.zeros(2, 3, 2, 2)
    as_matrix("visual.conv1.weight", weight)[1, 4] = 5.0
    assert weight[1, 1, 0, 0] == 5.0

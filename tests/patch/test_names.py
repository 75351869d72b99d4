import time

import open_clip
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from muwa.library import load_clip as load
from muwa.patch import names

Q = "text_model.encoder.layers.1.self_attn.q_proj.weight"


def narrow(*, quick: bool, width=32, layers=3):
    """A narrow CLIP with the structure of ViT-L-14: (open_clip's model, its weights)."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        16,
        {"image_size": 28, "patch_size": 14, "layers": layers, "width": width, "head_width": 16},
        {"context_length": 24, "vocab_size": 64, "layers": layers, "width": width, "heads": 2},
        quick_gelu=quick,
    ).eval()
    for parameter in model.parameters():  # norms and biases start at 1 and 0, which would hide a wrong map
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model, weights_of(model)


def weights_of(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def configs(model, act):
    """The two towers of an open_clip model as Hugging Face's configs."""
    text, eye = model.token_embedding.weight, model.visual
    words = CLIPTextConfig(
        vocab_size=len(text),
        hidden_size=text.shape[1],
        intermediate_size=4 * text.shape[1],
        hidden_act=act,
        num_hidden_layers=len(model.transformer.resblocks),
        max_position_embeddings=len(model.positional_embedding),
        num_attention_heads=model.transformer.resblocks[0].attn.num_heads,
        projection_dim=model.text_projection.shape[1],
        bos_token_id=len(text) - 2,
        eos_token_id=len(text) - 1,
        pad_token_id=0,
    )
    width = eye.conv1.weight.shape[0]
    images = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        hidden_act=act,
        num_hidden_layers=len(eye.transformer.resblocks),
        num_attention_heads=eye.transformer.resblocks[0].attn.num_heads,
        image_size=eye.image_size[0],
        patch_size=eye.patch_size[0],
        projection_dim=eye.proj.shape[1],
    )
    return words, images


def filled(kind, config, weights):
    """A Hugging Face model in which every parameter is set from `weights`."""
    model = kind(config).eval()
    own = model.state_dict()
    theirs = names.to_hf(weights)
    model.load_state_dict(
        names.rename_to_target(
            {name: t for name, t in theirs.items() if names.name_in_target(name, own)}, own
        )
    )
    return model


def inputs(model, n=3):
    generator = torch.Generator().manual_seed(1)
    length, words = len(model.positional_embedding), len(model.token_embedding.weight)
    tokens = torch.randint(1, words - 2, (n, length), generator=generator)
    tokens[:, 0] = words - 2
    for row, end in zip(tokens, (length - 1, 5, 9), strict=True):
        row[end], row[end + 1 :] = words - 1, 0
    return tokens, torch.randn(n, 3, *model.visual.image_size, generator=generator)


def test_worked_by_hand():
    assert names.hf_names("text_projection") == ["text_projection.weight"]
    assert names.hf_names("visual.transformer.resblocks.11.mlp.c_fc.bias") == [
        "vision_model.encoder.layers.11.mlp.fc1.bias"
    ]
    assert names.hf_names("text.transformer.resblocks.0.attn.in_proj_bias") == [
        f"text_model.encoder.layers.0.self_attn.{part}_proj.bias" for part in "qkv"
    ]
    fused = names.to_hf({"transformer.resblocks.0.attn.in_proj_weight": torch.arange(12.0).view(6, 2)})
    assert fused["text_model.encoder.layers.0.self_attn.k_proj.weight"].tolist() == [[4, 5], [6, 7]]
    assert names.to_hf({"visual.proj": torch.ones(3, 2)})["visual_projection.weight"].shape == (2, 3)


@pytest.mark.parametrize(
    "wrong", ["visual.trunk.blocks.0.attn.qkv.weight", "transformer.resblocks.0.attn.other"]
)
def test_a_name_without_a_counterpart_is_refused(wrong):
    with pytest.raises(
        KeyError, match=f"{wrong}: no parameter of an open_clip CLIP that Hugging Face's CLIPModel has"
    ):
        names.to_hf({wrong: torch.ones(1)})
    with pytest.raises(
        KeyError, match=f"{wrong}: no parameter of a Hugging Face CLIPModel that open_clip's CLIP has"
    ):
        names.to_open_clip({wrong: torch.ones(1)})


def test_to_hf_and_back_gives_the_same_tensors():
    weights = load("miniature").weights
    back = names.to_open_clip(names.to_hf(weights))
    assert set(back) == set(weights)
    assert all(
        torch.equal(back[name], weight) and back[name].is_contiguous() for name, weight in weights.items()
    )


def test_a_text_tower_under_the_prefix_text_is_the_same_tower():
    weights = narrow(quick=False)[1]
    custom = {
        name if name.startswith(("visual", "logit")) else f"text.{name}": w for name, w in weights.items()
    }
    theirs, want = names.to_hf(custom), names.to_hf(weights)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in want.items())
    assert set(names.write_back(theirs, custom)) == set(custom)


@pytest.mark.parametrize("quick", [False, True])
def test_the_towers_give_the_same_embeddings_in_both_libraries(quick):
    model, weights = narrow(quick=quick)
    assert apart(model, weights, "quick_gelu" if quick else "gelu") <= 1e-5


def test_another_activation_would_be_noticed():
    model, weights = narrow(quick=True)
    assert apart(model, weights, "gelu") > 1e-4


@pytest.mark.slow
def test_a_vit_l_gives_the_same_embeddings_in_both_libraries():
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-L-14", pretrained=None).eval()
    weights = weights_of(model)
    back = names.to_open_clip(names.to_hf(weights))
    assert all(torch.equal(back[name], weight) for name, weight in weights.items())
    assert apart(model, weights, "gelu") <= 1e-5


@torch.no_grad()
def apart(model, weights, act):
    """CLIPModel, CLIPTextModel and CLIPVisionModel, filled through the map, against open_clip: the largest difference of
    an embedding of length 1."""
    words, images = configs(model, act)
    tokens, pixels = inputs(model)
    text, image = (F.normalize(x, dim=-1) for x in (model.encode_text(tokens), model.encode_image(pixels)))
    joint = CLIPConfig(
        text_config=words.to_dict(), vision_config=images.to_dict(), projection_dim=text.shape[1]
    )
    both = filled(CLIPModel, joint, weights)(input_ids=tokens, pixel_values=pixels)
    alone = filled(CLIPTextModel, words, weights)(input_ids=tokens).pooler_output @ model.text_projection
    eye = filled(CLIPVisionModel, images, weights)(pixel_values=pixels).pooler_output @ model.visual.proj
    projected = filled(CLIPTextModelWithProjection, words, weights)(input_ids=tokens).text_embeds
    pairs = (
        (both.text_embeds, text),
        (both.image_embeds, image),
        (alone, text),
        (eye, image),
        (projected, text),
    )
    return max((F.normalize(theirs, dim=-1) - ours).abs().max().item() for theirs, ours in pairs)


def test_a_target_has_a_full_name_or_one_without_prefix_or_with_another_prefix():
    model, weights = narrow(quick=False)
    words, images = configs(model, "gelu")
    text, eye = CLIPTextModel(words).state_dict(), CLIPVisionModel(images).state_dict()
    llama = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64
    )
    llava = LlavaForConditionalGeneration(LlavaConfig(vision_config=images, text_config=llama)).state_dict()
    k = "vision_model.encoder.layers.1.self_attn.k_proj.bias"

    def own_name(target, ending):  # what is before it differs between versions of transformers
        (name,) = (name for name in target if name.endswith(ending))
        return name

    assert names.name_in_target(k, eye) == own_name(eye, "encoder.layers.1.self_attn.k_proj.bias")
    assert names.name_in_target(k, llava) == own_name(llava, "encoder.layers.1.self_attn.k_proj.bias")
    assert names.name_in_target(k, [f"x.{name}" for name in names.to_hf(weights)]) == f"x.{k}"
    assert names.name_in_target(Q, text) == own_name(text, "encoder.layers.1.self_attn.q_proj.weight")
    assert names.name_in_target(Q, names.to_hf(weights)) == Q
    assert names.name_in_target(Q, [Q]) == Q
    for target in (eye, llava):  # a vision tower that stands alone has names like a text tower's
        assert names.name_in_target(Q, target) is None
        assert names.name_in_target("text_model.embeddings.position_embedding.weight", target) is None
    assert names.name_in_target(k, text) is None
    assert names.name_in_target("text_projection.weight", text) is None
    assert names.name_in_target("logit_scale", text) is None
    assert names.name_in_target("logit_scale", names.to_hf(weights)) == "logit_scale"
    moved = names.convert_to_target(
        {name: w for name, w in weights.items() if name.startswith("visual.transformer")}, llava
    )
    assert set(moved) == {name for name in llava if "vision_tower." in name and ".encoder." in name}


@pytest.mark.parametrize("kind", ["text", "vision"])
@pytest.mark.parametrize(
    "stem", ["", "{}_model.", "text_encoder.{}_model.", "model.vision_tower.", "model.vision_tower.{}_model."]
)
def test_every_spelling_of_transformers_5_and_of_files_on_the_hub_is_understood(kind, stem):
    """A tower alone: `vision_model.` stands before its names up to transformers 5.5, and nothing after that."""
    mark = {"text": "token_embedding", "vision": "patch_embedding"}[kind]
    ends = [
        f"embeddings.{mark}.weight",
        "encoder.layers.0.mlp.fc1.bias",
        "encoder.layers.11.layer_norm2.weight",
    ]
    target = [stem.format(kind) + end for end in ends]
    assert [names.name_in_target(f"{kind}_model.{end}", target) for end in ends] == target


def test_a_target_with_two_matching_towers_is_refused():
    weights = names.to_hf(narrow(quick=False)[1])
    two = [f"{prefix}.{name}" for prefix in ("a", "b") for name in weights]
    with pytest.raises(ValueError, match=rf"{Q}: matches a.{Q}, b.{Q}: say which of these towers is meant"):
        names.rename_to_target({Q: weights[Q]}, two)


def test_a_parameter_that_a_target_lacks_is_named():
    model, weights = narrow(quick=False)
    own = CLIPTextModel(configs(model, "gelu")[0]).state_dict()
    with pytest.raises(
        KeyError,
        match=r"visual_projection.weight: not in this model, whose first parameters are (text_model\.)?embed",
    ):
        names.convert_to_target({"visual.proj": weights["visual.proj"]}, own)
    assert names.parts_in_target("visual.proj", weights["visual.proj"], own) == {}
    (found,) = names.parts_in_target("ln_final.bias", weights["ln_final.bias"], own)
    assert found in ("final_layer_norm.bias", "text_model.final_layer_norm.bias")
    assert found in own


def test_parts_of_a_fused_projection_that_are_absent_are_zero_in_a_delta():
    fused = names.to_open_clip({Q: torch.ones(2, 2)})["transformer.resblocks.1.attn.in_proj_weight"]
    assert fused.tolist() == [[1, 1]] * 2 + [[0, 0]] * 4


def test_tensors_under_either_name_can_be_converted_and_written_back():
    weights = narrow(quick=False)[1]
    theirs = names.to_hf(weights)
    for target in (weights, theirs):
        for source in (weights, theirs):
            back = names.write_back(names.to_full_names(source), target)
            assert set(back) == set(target)
            assert all(torch.equal(back[name], target[name]) for name in target)
    (name,) = names.write_back({Q: torch.zeros_like(theirs[Q])}, weights)
    kept = names.write_back({Q: torch.zeros_like(theirs[Q])}, weights)[name]
    assert not kept[:32].any()
    assert torch.equal(kept[32:], weights[name][32:])
    with pytest.raises(KeyError, match="text_model.encoder.layers.7.mlp.fc1.bias: not in this model"):
        names.write_back({"text_model.encoder.layers.7.mlp.fc1.bias": torch.ones(1)}, weights)


def test_a_tower_of_many_names_is_looked_up_quickly():
    weights = names.to_hf(narrow(quick=False, width=16, layers=24)[1])
    start = time.process_time()
    for name, tensor in weights.items():
        assert names.parts_in_target(name, tensor, weights)
    assert time.process_time() - start < 5  # 0.1 s on an idle core

import open_clip
import pytest
import tiny
import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from muwa.models.clip.model import Clip, Preparation, Towers
from muwa.models.clip.staged_forward import StagedForward

VISION = {"image_size": 32, "patch_size": 16, "layers": 3, "width": 32, "head_width": 16}
TEXT = {"context_length": 16, "vocab_size": 64, "layers": 2, "width": 32, "heads": 2}


def open_clip_model(vision=None, text=None):
    torch.manual_seed(0)
    vision, text = {**VISION, **(vision or {})}, {**TEXT, **(text or {})}
    whole = open_clip.CLIP if not {"no_causal_mask", "pool_type"} & set(text) else open_clip.CustomTextCLIP
    model = whole(16, vision, text)
    size = (vision["image_size"],) * 2
    prepare = Preparation(lambda image: image.resize(size), (0.5,) * 3, (0.5,) * 3)
    return Clip(Towers(model, model.encode_image, model.encode_text), prepare, tiny.tokenize, source="tiny")


def hugging_face():
    torch.manual_seed(0)
    block = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {
        "vocab_size": 64,
        "max_position_embeddings": 16,
        "bos_token_id": 62,
        "eos_token_id": 63,
        "pad_token_id": 0,
    }
    vision = {**block, "image_size": 32, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config={**block, **words}, vision_config=vision, projection_dim=16))
    towers = Towers(
        model,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        lambda tokens: model.get_text_features(input_ids=tokens).pooler_output,
    )
    return Clip(towers, tiny.prepare, tiny.tokenize, source="hf")


MODELS = {
    "open_clip": open_clip_model,
    "average_pool": lambda: open_clip_model({"pool_type": "avg"}),
    "layer_scale": lambda: open_clip_model({"ls_init_value": 0.3}, {"ls_init_value": 0.3}),
    "siglip_text": lambda: open_clip_model(
        text={"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    ),
    "attention_pool": lambda: open_clip_model(
        {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    ),
    "timm": lambda: open_clip_model(
        {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    ),
    "resnet": lambda: open_clip_model({"layers": (1, 1, 1, 1), "width": 8, "image_size": 32}),
    "hugging_face": hugging_face,
}


def inputs(tower, size=32):
    torch.manual_seed(1)
    if tower == "text":
        return tiny.tokenize(["a", "Ada Fox.", "a longer name"])
    return torch.randn(3, 3, size, size)


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("name", MODELS)
def test_a_tower_stopped_and_resumed_anywhere_gives_its_own_embeddings(name, tower):
    model = MODELS[name]()
    staged, given = model.staged_forward(tower), inputs(tower, 224 if name == "timm" else 32)
    with torch.inference_mode():
        expected = F.normalize(model._towers.encode[tower](given), dim=-1)
        torch.testing.assert_close(model.encode(tower, given), expected, rtol=0, atol=1e-6)
        for stop in range(staged.end):
            if stop % 2 or not staged.blocks or (stop and staged._halves[(stop - 1) // 2] is not None):
                activations = model.go(
                    tower, model.enter(tower, given), stop if staged.blocks else staged.end
                )
                assert activations.at == (stop if staged.blocks else staged.end)
                got = model.go(tower, activations, staged.end).x
                torch.testing.assert_close(F.normalize(got, dim=-1), expected, rtol=0, atol=1e-6)


def test_which_models_allow_which_savings():
    """(number of blocks, whether the last block is reduced and padding is cut) of vision and text."""
    found = {}
    for name, make in MODELS.items():
        model = make()
        towers = (model.staged_forward("vision"), model.staged_forward("text"))
        found[name] = [(len(tower.blocks), tower.reduced) for tower in towers]
    assert found == {
        "open_clip": [(3, True), (2, True)],
        "average_pool": [(3, False), (2, True)],  # every token is pooled
        "layer_scale": [(3, True), (2, True)],
        "siglip_text": [(3, True), (2, False)],  # not causal: tokens attend to padding
        "attention_pool": [(3, False), (2, True)],
        "timm": [(12, False), (2, True)],
        "resnet": [(0, False), (2, True)],  # no transformer: runs as a whole
        "hugging_face": [(2, True), (2, True)],
    }


def test_padding_is_cut_after_the_longest_prompt_of_a_causal_tower_only():
    model = tiny.clip()
    assert model.enter("text", tiny.tokenize(["a", "abcdef"])).x.shape == (2, 8)  # start, six letters, end
    assert MODELS["siglip_text"]().enter("text", tiny.tokenize(["a", "abcdef"])).x.shape == (2, 16)


def test_gradients_through_the_stages_are_those_of_the_network():
    for name in ("open_clip", "hugging_face", "layer_scale"):
        model = MODELS[name]()
        for tower in ("vision", "text"):
            network, given = model._towers.model.requires_grad_(True), inputs(tower)
            weigh = torch.randn(3, 16)
            (F.normalize(model._towers.encode[tower](given), dim=-1) * weigh).sum().backward()
            want = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
            network.requires_grad_(False).zero_grad(set_to_none=True)
            leaves = {n: w.clone().requires_grad_() for n, w in model.weights.items()}
            (model.encode(tower, given, leaves) * weigh).sum().backward()
            assert len(want) > 10
            tiny.same_gradients({key: leaves[key].grad for key in want}, want)


def test_places_by_hand():
    """Two blocks: 0 pixels, 1 before block 0, 2 before its MLP, 3 block 1, 4 its MLP, 5 before pooling, 6 embeddings."""
    staged = tiny.clip().staged_forward("vision")
    block = "visual.transformer.resblocks.1."
    assert staged.end == 6
    assert staged.place(["visual.conv1.weight"]) == (0, None)
    assert staged.place(["visual.ln_pre.weight"]) == (0, None)
    assert staged.place([f"{block}ln_1.weight"]) == (3, None)
    assert staged.place([f"{block}attn.in_proj_weight"]) == (3, None)
    assert staged.place([f"{block}attn.out_proj.weight"]) == (3, 4)
    assert staged.place([f"{block}mlp.c_fc.weight"]) == (4, None)
    assert staged.place([f"{block}mlp.c_proj.weight"]) == (4, 5)
    assert staged.place([f"{block}mlp.c_fc.weight", f"{block}mlp.c_proj.weight"]) == (4, None)
    assert staged.place([f"{block}attn.in_proj_weight", f"{block}attn.out_proj.weight"]) == (3, None)
    assert staged.place(["visual.ln_post.weight"]) == (5, None)
    assert staged.place(["visual.proj"]) == (5, 6)


def test_a_forward_that_fails_leaves_the_modules_as_they_were():
    model = tiny.clip()
    model.staged_forward("vision")
    with pytest.raises(RuntimeError):
        model.encode("vision", torch.zeros(1, 5, 32, 32))
    assert not any("forward" in vars(module) for module in model._towers.modules())
    assert not any(module._forward_hooks for module in model._towers.modules())


def test_a_block_of_an_unknown_kind_runs_as_a_whole():
    class Odd(Block):
        """A subclass may compute anything."""

    tower = nn.ModuleDict({"visual": nn.ModuleDict({"blocks": nn.ModuleList([Odd(8, 2)])})})
    staged = StagedForward(tower, "vision", lambda x: x)
    assert staged.blocks
    assert staged.place(["visual.blocks.0.mlp.fc2.weight"]) == (1, None)
    assert not staged.can_reduce

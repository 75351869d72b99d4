"""The names of single files, against diffusers' own conversion of them."""

import pytest
import single_files
import tiny_sd
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel

from muwa.library import load_clip as load
from muwa.patch import layouts

REAL = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "xl": {
        "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
        "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip


def clips():
    return {
        "text_encoder": dict(load("miniature").weights),
        "text_encoder_2": dict(tiny_sd.second_clip().weights),
    }


@pytest.mark.parametrize("layout", single_files.LAYOUTS)
def test_diffusers_loads_the_written_file(layout, tmp_path):
    """The test's own writer is right: diffusers' loader gives the pipeline back."""
    xl = layout == "xl"
    pipeline = tiny_sd.xl_pipeline() if xl else tiny_sd.pipeline()
    path = single_files.write(tmp_path / "one.safetensors", pipeline, layout, clips())
    folder = single_files.configs(pipeline, tmp_path / "configs")
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    given = {} if xl else {"safety_checker": None, "requires_safety_checker": False}
    if layout == "comfy":
        given["text_encoder"] = pipeline.text_encoder  # diffusers knows these names in the file of SD 3 only
    again = kind.from_single_file(
        str(path), config=str(folder), local_files_only=True, dtype=torch.float32, **given
    )
    for name in ("unet", "vae", *[e for e in single_files.LAYOUTS[layout] if layout != "comfy"]):
        want, found = (dict(getattr(p, name).named_parameters()) for p in (pipeline, again))
        assert set(want) == set(found)
        assert all(torch.equal(want[key], found[key]) for key in want), name


@pytest.mark.parametrize("layout", REAL)
def test_all_names_of_the_real_unets_are_known(layout):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**REAL[layout])
    attention = [hasattr(block, "attentions") for block in unet.up_blocks]
    ldm = {single_files.unet_name(name, 2, attention): name for name in unet.state_dict()}
    found = layouts.unet_names(ldm)
    assert found == {new: old for old, new in ldm.items()}
    assert len(found) == len(unet.state_dict()) > 600


def test_the_components_of_each_layout_are_found():
    pipeline = tiny_sd.xl_pipeline()
    stored = single_files.tensors(pipeline, "xl", clips())
    found = {
        section.component: section for section in layouts.sections([*stored, *single_files.averaged(stored)])
    }
    assert list(found) == ["text_encoder", "text_encoder_2", "unet"]
    assert found["unet"].average
    assert (
        found["text_encoder_2"].stored["text_projection"] == "conditioner.embedders.1.model.text_projection"
    )
    assert set(found["unet"].stored) == set(pipeline.unet.state_dict())
    assert found["unet"].stored["conv_in.weight"] == "model_ema.diffusion_modelinput_blocks00weight"


def test_a_file_of_another_layout_has_no_sections():
    assert layouts.sections(load("miniature").weights) == []
    assert layouts.sections(["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"]) == []
    assert (
        layouts.unet_names(["output_blocks.2.0.nothing.weight", "middle_block.0.out_layers.9.bias", "a"])
        == {}
    )

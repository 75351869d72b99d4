import json

import open_clip
import pytest
import single_files
import tiny_sd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from records import part
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import muwa
from muwa.models.diffusion.single_file import clip_tokenizer, write_configs
from muwa.patch import layouts, names
from muwa.patch.__main__ import main
from muwa.patch.apply import write_patch
from muwa.types.edit import Edit
from muwa.types.image_requests import Prompts

PROMPTS = Prompts(("a photo of a dog", "red"), (3, 4))
KEY = "transformer.resblocks.2.attn.in_proj_weight"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def clips():
    return {
        "text_encoder": dict(muwa.load_clip().weights),
        "text_encoder_2": dict(tiny_sd.second_clip().weights),
    }


def load(path, clips, **settings):
    return part("model=sd", path=str(path), clips=clips, steps=2, guidance=2.0, **settings)()


@pytest.mark.parametrize("layout", ["sd1", "sd2", "xl"])
def test_a_single_file_is_loaded_generates_is_patched_and_loaded_again(layout, tmp_path):
    xl = layout == "xl"
    want = tiny_sd.xl() if xl else tiny_sd.diffusion()
    path = single_files.write(tmp_path / "one.safetensors", want.pipeline, layout, clips())
    config = str(single_files.configs(want.pipeline, tmp_path / "configs"))
    loaders = {"text_encoder": muwa.load_clip} | ({"text_encoder_2": tiny_sd.second_clip} if xl else {})
    model = load(path, loaders, config=config)
    assert torch.equal(model.generate(PROMPTS), want.generate(PROMPTS))
    assert model.fingerprint == want.fingerprint
    step = Edit(
        {KEY: 0.3 * torch.randn(model.clip.weights[KEY].shape, generator=torch.Generator().manual_seed(0))},
        (),
    )
    write_patch(tmp_path / "p", step, model.patch_base(step))
    assert main(["apply", str(tmp_path / "p"), str(path), "--out", str(tmp_path / "out")]) == 0
    edited = load(
        tmp_path / "out/one.safetensors",
        loaders | {"text_encoder": lambda: muwa.load_clip().edited(step)},
        config=config,
    )
    assert torch.equal(edited.generate(PROMPTS), want.edited(step).generate(PROMPTS))
    assert not torch.equal(edited.generate(PROMPTS), want.generate(PROMPTS))
    again = load(tmp_path / "out/one.safetensors", loaders, config=config)  # its record says what differs
    assert torch.equal(again.generate(PROMPTS), edited.generate(PROMPTS))
    assert again.unedited.fingerprint == model.fingerprint
    assert [one.tensors for one in again.requests] == [(KEY,)]


def test_what_cannot_be_loaded_says_why(tmp_path):
    pipeline = tiny_sd.pipeline()
    path = single_files.write(tmp_path / "one.safetensors", pipeline, "sd1", clips())
    given = {"text_encoder": muwa.load_clip}
    with pytest.raises(
        ValueError,
        match=r"one.safetensors: want Stable Diffusion 1, 2 or XL .* found a UNet of 4 channels that reads text of width 128, and text_encoder. For another model give model.config=FOLDER",
    ):
        load(path, given)
    with pytest.raises(FileNotFoundError, match="model.config=.*: no model_index.json"):
        load(path, given, config=str(tmp_path))
    config = single_files.configs(pipeline, tmp_path / "configs")
    with pytest.raises(
        ValueError, match="model.config=.* is for a single file; model.path=miniature is none"
    ):
        load("miniature", given, config=str(config))
    (tmp_path / "x.ckpt").write_bytes(b"1")
    with pytest.raises(
        ValueError, match=r"model.path=.*x.ckpt: a .ckpt file is a pickle.*to convert one: python -c"
    ):
        load(tmp_path / "x.ckpt", given)
    (tmp_path / "x.safetensors").write_bytes(b"1")
    with pytest.raises(ValueError, match="x.safetensors: not a safetensors file"):
        load(tmp_path / "x.safetensors", given)
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(
        ValueError, match="y.safetensors: no single file of Stable Diffusion: looked for model.diff"
    ):
        load(tmp_path / "y.safetensors", given)
    wide = load_file(path)
    at = "model.diffusion_model.out.2.weight"
    save_file(wide | {at: torch.zeros(3, *wide[at].shape[1:])}, tmp_path / "z.safetensors")
    with pytest.raises(ValueError, match="z.safetensors: cannot be loaded .*may not fit the configs of"):
        load(tmp_path / "z.safetensors", given, config=str(config))


REAL = {  # layout -> (the widths, blocks and MLPs of its text encoders, the UNet)
    "sd1": ({"text_encoder": (768, 12)}, {"cross_attention_dim": 768, "attention_head_dim": 8}),
    "sd2": (
        {"text_encoder": (1024, 24)},
        {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    ),
    "xl": (
        {"text_encoder": (768, 12), "text_encoder_2": (1280, 32)},
        {
            "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
            "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
    ),
}  # fmt: skip


def real_shapes(layout):
    """Name -> shape of the real file in a layout; nothing is allocated."""
    encoders, unet = REAL[layout]
    text = {}
    with torch.device("meta"):
        for encoder, (width, blocks) in encoders.items():
            tower = open_clip.CLIP(
                width,
                {"image_size": 32, "patch_size": 16, "layers": 1, "width": 64, "head_width": 16},
                {
                    "context_length": 77,
                    "vocab_size": 49408,
                    "layers": blocks,
                    "width": width,
                    "heads": width // 64,
                },
            )
            text[encoder] = dict(tower.named_parameters())
        parts = type(
            "Parts", (), {"text_encoder": torch.nn.Linear(1, 1), "text_encoder_2": torch.nn.Linear(1, 1)}
        )
        parts.unet = UNet2DConditionModel(**unet)
        parts.vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        stored = single_files.tensors(parts, layout, text)
    return {name: tuple(tensor.shape) for name, tensor in stored.items()}


@pytest.mark.parametrize(
    "layout", ["sd1", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sd2", "xl"))]
)
def test_the_configs_of_the_real_files_are_derived(layout, tmp_path):
    """Modules that are built from the derived configs have exactly the file's tensors."""
    shapes = real_shapes(layout)
    found = layouts.sections(shapes)
    write_configs(tmp_path, shapes, found, {}, "here")
    stored = {section.component: section.stored for section in found}
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(tmp_path / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(tmp_path / "vae"))
        assert {n: tuple(p.shape) for n, p in unet.state_dict().items()} == {
            name: shapes[at] for name, at in stored["unet"].items()
        }
        assert sum(p.numel() for p in vae.parameters()) == sum(
            torch.Size(s).numel() for n, s in shapes.items() if n.startswith("first_stage_model.")
        )
        for encoder in REAL[layout][0]:
            kind = CLIPTextModelWithProjection if encoder == "text_encoder_2" else CLIPTextModel
            config = CLIPTextConfig.from_pretrained(tmp_path / encoder)
            tower = kind(config)
            weights = {n: torch.empty(shapes[at]) for n, at in stored[encoder].items()}
            want = names.to_full_names(weights)
            place = {names.name_in_target(n, tower.state_dict()): tuple(t.shape) for n, t in want.items()}
            place.pop(None, None)  # Stable Diffusion 2's last block; the projection of its CLIP
            assert {n: tuple(p.shape) for n, p in tower.named_parameters()} == place
            assert config.num_hidden_layers == REAL[layout][0][encoder][1] - (layout == "sd2")
            assert config.hidden_act == (
                "quick_gelu" if layout != "sd2" and encoder == "text_encoder" else "gelu"
            )
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == ("v_prediction" if layout == "sd2" else "epsilon")
    write_configs(tmp_path, shapes, found, {"modelspec.prediction_type": "epsilon"}, "here")
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize("pad", ["!", "<|endoftext|>"])
def test_the_tokenizer_gives_open_clips_tokens(pad, tmp_path):
    clip_tokenizer(pad).save_pretrained(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["A photo of Kael's 42 dogs, naïve" + "!" * (pad != "!"), "a", "tiny  spaces\tand 日本"]
    want = open_clip.SimpleTokenizer()(texts)
    found = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    for got, reference, mask in zip(found["input_ids"], want, found["attention_mask"], strict=True):
        length = int(mask.sum())
        assert got[:length].tolist() == reference[:length].tolist()
        assert set(got[length:].tolist()) == {0 if pad == "!" else 49407}

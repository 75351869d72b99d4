import json
import shutil

import pytest
import tiny_sd
import torch
from safetensors.torch import load_file, save_file

import muwa
from muwa.config import part
from muwa.models.diffusion.model import Diffusion
from muwa.types.image_requests import Prompts

CLIPS = {"text_encoder": muwa.load_clip}
PROMPTS = Prompts(("a photo of a dog", "red"), (3, 4))


def load(path, **changed) -> Diffusion:
    """model=sd from a folder, with other settings."""
    return part("model=sd", path=path, clips=changed.pop("clips", CLIPS), **changed)()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd") / "sd"
    tiny_sd.pipeline().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_folder_is_loaded_and_generates(folder):
    model = load(str(folder), steps=2, guidance=2.0)
    assert torch.equal(model.generate(PROMPTS), tiny_sd.diffusion().generate(PROMPTS))
    assert model.fingerprint == tiny_sd.diffusion().fingerprint
    assert str(folder) in model.source


@pytest.mark.parametrize(("dtype", "want"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_pipeline_is_cast_and_the_clip_is_not(folder, dtype, want):
    model = load(str(folder), steps=2, dtype=dtype)
    assert {p.dtype for p in model.weights("unet").values()} == {want}
    assert {p.dtype for p in model.clip.weights.values()} == {torch.float32}


def test_xl_is_loaded_with_two_clips(tmp_path, capfd):
    tiny_sd.xl_pipeline().save_pretrained(tmp_path)
    capfd.readouterr()
    model = load(str(tmp_path), clips={**CLIPS, "text_encoder_2": tiny_sd.second_clip}, steps=2, guidance=2.0)
    assert capfd.readouterr() == ("", "")
    assert list(model.clips) == ["text_encoder", "text_encoder_2"]
    assert torch.equal(model.generate(PROMPTS), tiny_sd.xl().generate(PROMPTS))
    with pytest.raises(
        ValueError, match="model.clips: got text_encoder, want one for each of text_encoder, text_encoder_2"
    ):
        load(str(tmp_path))


def test_a_folder_with_a_half_variant_alone_is_loaded(tmp_path):
    tiny_sd.pipeline(0, torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert load(str(tmp_path)).weights("unet")["conv_in.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "model.dtype: got 'int8', want one of fp32, fp16, bf16"),
        ({"steps": 0}, "model.steps=0 guidance=5.0 size=None: want steps >= 1"),
        ({"guidance": 0.5}, "model.steps=12 guidance=0.5 size=None: want .* guidance >= 1"),
        ({"size": 20}, "size=20: want .* a multiple of 8"),
        ({"device": "moon"}, "runtime.device=moon: not usable here"),
        ({"clips": {}}, "model.clips: got none, want one for each of text_encoder of"),
        (
            {"clips": {"text_encoder_2": muwa.load_clip}},
            "model.clips: got text_encoder_2, want one for each of text_enc",
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        load(str(folder), **settings)


def index(path, **changed):
    file = path / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


def drop(path, file, name):
    weights = load_file(path / file)
    del weights[name]
    save_file(weights, path / file, metadata={"format": "pt"})


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGE = {
    "no index": (
        lambda p: (p / "model_index.json").unlink(),
        FileNotFoundError,
        r"no model_index.json, so no diffusers",
    ),
    "index cut": (
        lambda p: (p / "model_index.json").write_text('{"a"'),
        ValueError,
        "model_index.json: not JSON",
    ),
    "index a list": (
        lambda p: (p / "model_index.json").write_text("[]"),
        ValueError,
        "got a list, want an object",
    ),
    "no unet": (
        lambda p: shutil.rmtree(p / "unet"),
        FileNotFoundError,
        "model_index.json names unet, which is not there",
    ),
    "no tokens": (
        lambda p: [f.unlink() for f in (p / "tokenizer").iterdir()],
        FileNotFoundError,
        "names tokenizer, which is",
    ),
    "no weights": (
        lambda p: (p / UNET).unlink(),
        FileNotFoundError,
        r"unet; looked for model.safetensors or diff",
    ),
    "weights cut": (
        lambda p: (p / UNET).write_bytes(b"xx"),
        ValueError,
        "unet/diffusion_pytorch_model.safetensors: the file is no safetensors file",
    ),
    "a tensor less": (
        lambda p: drop(p, UNET, "conv_in.weight"),
        ValueError,
        "no weights for unet/conv_in.weight",
    ),
    "other class": (lambda p: index(p, _class_name="NoSuch"), ValueError, r"cannot be loaded \(.*NoSuch"),
    "no text": (
        lambda p: index(p, _class_name="DDPMPipeline"),
        ValueError,
        "a DDPMPipeline; want a pipeline with a unet and",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_is_not_whole_is_named(folder, tmp_path, damage):
    do, error, message = DAMAGE[damage]
    path = shutil.copytree(folder, tmp_path / "part")
    do(path)
    with pytest.raises(error, match=rf"(?s)part.*{message}"):
        load(str(path))


def test_what_is_not_there_says_how_to_bring_it(tmp_path):
    for path in ("muwa/none", str(tmp_path / "none")):
        with pytest.raises(
            FileNotFoundError, match=rf"model.path={path}: no such folder, and no hub id .*save_pretrained"
        ):
            load(path)
